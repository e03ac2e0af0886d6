"""The operator's part of the loop: approve what was trained, roll it out, wait for what is under way."""

import json
import re
import time
from typing import Any

from surface import StoryError
from world import CANARY, MODEL, SITES, World

ENGINEER, APPROVER = "mina", "omar"
OPEN_ROLLOUT = {"DRAFT", "AWAITING_APPROVAL", "RUNNING", "PAUSED", "ROLLING_BACK"}
NEEDS_TRAFFIC = {"probation"}
AT_REST = {"committed", "failed", "skipped", "removed", "silent", "returned", "withdrawn", "kept"}
HELD = {"DRAFT", "AWAITING_APPROVAL", "PAUSED"}
SETTLE_S = 240.0
LOOK_S = 1.0


def releases(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = items(world.people[ENGINEER].get("/api/v1/releases"))
    return [r for r in found if r["model"] == MODEL]


def rollouts(world: World) -> list[dict[str, Any]]:
    return [r for r in items(world.people[ENGINEER].get("/api/v1/rollouts")) if r["model"] == MODEL]


def incidents(world: World) -> list[dict[str, Any]]:
    return items(world.people[ENGINEER].get("/api/v1/incidents"))


def retrains(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.people[ENGINEER].get("/api/v1/retrains")["runs"]
    return found


def items(answer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer["items"] if isinstance(answer, dict) else answer
    return found


def approve(world: World, version: str) -> None:
    """The second person looks at the release and signs it into the targets repository."""
    world.hub("model", "approve", f"{MODEL}@{version}", by=APPROVER)


def bring(world: World, version: str, *, step_days: float = 0) -> dict[str, Any]:
    """Approve that release and roll it out, canary first; the rollout's last row. Goes on where it was left."""
    world.memory.put("bringing", version)
    give_way(world, version)
    if any(r["version"] == version and r["state"] == "draft" for r in releases(world)):
        approve(world, version)
    row = finish(world, _rollout_of(world, version) or roll_out(world, version), step_days=step_days)
    world.memory.put("bringing", "")
    return row


def in_the_way(world: World, version: str = "") -> dict[str, Any] | None:
    """The open rollout of another version, which whoever looks around here began; the hub takes one at a time."""
    mine = {version, world.memory.get("bringing")}
    return next(
        (
            r
            for r in rollouts(world)
            if r["kind"] == "update" and r["state"] in OPEN_ROLLOUT and r["version"] not in mine
        ),
        None,
    )


def give_way(world: World, version: str) -> None:
    """Wait until that rollout is over: somebody tries things out, and the story is no reason to stop them."""
    if world.options.leave or (other := in_the_way(world, version)) is None:
        return
    world.tell.say(f"rollout {other['id']} of {other['version']} is {other['state']}: the story waits until it is over")
    with world.tell.doing(f"waiting for the end of rollout {other['id']} (abort it, or let it finish)"):
        while in_the_way(world, version):
            time.sleep(LOOK_S)


def _stand_by(world: World, rollout: str) -> None:
    """Somebody pauses it, or has to approve it: the story's clock stands meanwhile."""
    row: dict[str, Any] = world.people[ENGINEER].get(f"/api/v1/rollouts/{rollout}")
    if world.options.leave or row["state"] not in HELD:
        return
    world.tell.say(f"rollout {rollout} of {row['version']} is {row['state']}: the story waits. {row['sentence']}")
    with world.tell.doing(f"waiting for somebody to go on with rollout {rollout} (resume, abort or rollback)"):
        while world.people[ENGINEER].get(f"/api/v1/rollouts/{rollout}")["state"] in HELD:
            time.sleep(LOOK_S)


def _rollout_of(world: World, version: str) -> str:
    """The newest rollout of that version, approved; empty without one."""
    found = next((r for r in rollouts(world) if r["version"] == version), None)
    if found is None:
        return ""
    if found["state"] in {"DRAFT", "AWAITING_APPROVAL"}:
        world.hub("rollout", "approve", found["id"], by=APPROVER)
    return str(found["id"])


def roll_out(world: World, version: str) -> str:
    """Canary first, then the rest; proposed by one person, approved by another. Its id.

    A challenger is tried first by the site that asked for it, and each site keeps it only if it does better
    there: airports differ, so one that returns is no reason to take it from the others. Anything else stops
    at the first site that fails.
    """
    rows = probation_rows(world)
    plan: dict[str, Any] = {"probation": {"min_rows": rows, "min_labelled": rows * 2 // 3, "max_rows": rows * 3}}
    canary = trained_at(world, version)
    if canary and version != (world.memory.get("first") or {}).get("version", version):
        plan["gate"] = {"max_failures": len(SITES) - 1, "min_committed": 0}
    asked = ("--canary", canary or CANARY, "--plan", json.dumps(plan))
    started = world.hub("rollout", "start", f"{MODEL}@{version}", *asked, by=ENGINEER)
    rollout: str = started["id"]
    world.hub("rollout", "approve", rollout, by=APPROVER)
    return rollout


def trained_at(world: World, version: str) -> str:
    """The site whose labels asked for that release; empty for one that a person pushed."""
    device = next(r["source_device"] for r in releases(world) if r["version"] == version)
    fleet = world.people[ENGINEER].get("/api/v1/fleet")["devices"]
    return next((d["site"] for d in fleet if device and d["id"] == device), "")


def probation_rows(world: World) -> int:
    return max(150, 900 // world.options.every)


def settle(world: World) -> None:
    """Let what the sites have seen so far arrive, and what that set in motion come to rest."""
    world.wait("the sites' reports to arrive at the hub", lambda: _drained(world), timeout_s=SETTLE_S)
    world.wait("training under way to end", lambda: not _learning(world), timeout_s=SETTLE_S)
    world.wait("the sites to take up their orders", lambda: not _moving(world), timeout_s=SETTLE_S)


def _drained(world: World) -> bool:
    for site in world.sites.values():
        status = site.status()
        model = next((m for m in status["models"] if m["name"] == MODEL), None)
        seen = site.last.get("answered", 0) + site.last.get("collected", 0)
        if status["hub"]["waiting"] > 0 or (model and model["samples"] < seen):
            return False
    return True


def _learning(world: World) -> bool:
    open_states = {"requested", "running", "candidate"}
    return any(r["state"] in open_states for r in retrains(world))


def _moving(world: World) -> bool:
    """Whether a device is in a step that ends without traffic, or has an order it has not taken up yet."""
    for rollout in rollouts(world):
        if rollout["state"] == "ROLLING_BACK":
            return True
        if rollout["state"] == "RUNNING":
            devices = [d["state"] for w in rollout["waves"][: rollout["wave"] + 1] for d in w["devices"]]
            if any(state not in NEEDS_TRAFFIC and state not in AT_REST for state in devices):
                return True
    return False


def finish(world: World, rollout: str, *, steps: int = 180, step_days: float = 0) -> dict[str, Any]:
    """Let days pass until a rollout is over; its last row."""
    said = ""
    for _ in range(steps):
        _stand_by(world, rollout)
        row: dict[str, Any] = world.people[ENGINEER].get(f"/api/v1/rollouts/{rollout}")
        words = "; ".join(row["waiting"])
        step = re.sub(r"[\d,.]+", "", words)  # counts grow every day; what is said is the step
        if words and step != said:
            world.tell.say(f"rollout of {row['version']}: {words}")
            said = step
        if row["state"] not in OPEN_ROLLOUT:
            why = row.get("sentence") or row.get("cause") or ""
            world.tell.say(f"rollout of {row['version']} {row['state'].lower()}. {why}")
            return row
        if world.clock >= world.options.end:
            world.tell.say(f"the year is over while {row['version']} is being proven: {words}")
            return row
        world.days(step_days or (1 if world.options.speed else 2))
        settle(world)
        time.sleep(0.05)
    raise StoryError(f"rollout {rollout} is still {row['state']} after {steps} looks: {words}")


def answer_drafts(world: World) -> list[str]:
    """Approve and roll out every challenger the sites sent since, and what an earlier run left half done."""
    done = [left] if (left := world.memory.get("bringing")) else []
    done += [r["version"] for r in releases(world) if r["state"] == "draft" and r["source_device"]]
    for version in dict.fromkeys(done):
        where = trained_at(world, version)
        world.tell.say(f"challenger {version} has arrived from {where}: {APPROVER} approves it, {where} tries it first")
        bring(world, version)
    return done


def tell_news(world: World) -> None:
    """What the hub has heard since the last time: quality lost at a site, and what retraining led to."""
    told = set(world.memory.get("told", []))
    news = {}
    lost: set[str] = set()
    for window in world.people[ENGINEER].get(f"/api/v1/drift/{MODEL}").get("windows", []):
        site = window["site"]
        if window["verdict"] != "quality_lost":
            lost.discard(site)
        elif site not in lost:  # the first of a row of bad weeks is the news
            lost.add(site)
            news[f"{site} {window['window']}"] = f"{site}: {window['sentence']}"
    for run in retrains(world):
        sentence = run["request"].get("sentence", "")
        if run["state"] in {"rejected", "refused", "failed", "expired"}:
            news[f"{run['id']} {run['state']}"] = f"retraining at {run['site']}: {run['state']}. {sentence}"
    for key, sentence in news.items():
        if key not in told:
            world.tell.say(sentence)
    world.memory.put("told", sorted(told | news.keys()))
