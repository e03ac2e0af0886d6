"""The operator's part of the loop: approve what was trained, roll it out, wait for what is under way."""

import json
import time
from typing import Any

from surface import StoryError, wait_for
from world import CANARY, MODEL, World, say

ENGINEER, APPROVER = "mina", "omar"
OPEN_ROLLOUT = {"DRAFT", "AWAITING_APPROVAL", "RUNNING", "PAUSED", "ROLLING_BACK"}
NEEDS_TRAFFIC = {"probation"}
AT_REST = {"committed", "failed", "skipped", "removed", "silent", "returned", "withdrawn", "kept"}
SETTLE_S = 240.0


def releases(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _items(world.people[ENGINEER].get("/api/v1/releases"))
    return [r for r in found if r["model"] == MODEL]


def rollouts(world: World) -> list[dict[str, Any]]:
    return [r for r in _items(world.people[ENGINEER].get("/api/v1/rollouts")) if r["model"] == MODEL]


def incidents(world: World) -> list[dict[str, Any]]:
    return _items(world.people[ENGINEER].get("/api/v1/incidents"))


def retrains(world: World) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = world.people[ENGINEER].get("/api/v1/retrains")["runs"]
    return found


def _items(answer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer["items"] if isinstance(answer, dict) else answer
    return found


def approve(world: World, version: str) -> None:
    """The second person looks at the release and signs it into the targets repository."""
    world.hub("model", "approve", f"{MODEL}@{version}", by=APPROVER)


def roll_out(world: World, version: str) -> str:
    """Canary first, then the rest; proposed by one person, approved by another. Its id."""
    rows = probation_rows(world)
    plan = {"probation": {"min_rows": rows, "min_labelled": rows * 2 // 3, "max_rows": rows * 6}}
    started = world.hub(
        "rollout", "start", f"{MODEL}@{version}", "--canary", CANARY, "--plan", json.dumps(plan), by=ENGINEER
    )
    rollout: str = started["id"]
    world.hub("rollout", "approve", rollout, by=APPROVER)
    return rollout


def probation_rows(world: World) -> int:
    return max(150, 900 // world.options.every)


def settle(world: World) -> None:
    """Let what the sites have seen so far arrive, and what that set in motion come to rest."""
    wait_for("the sites' reports to arrive at the hub", lambda: _drained(world), timeout_s=SETTLE_S)
    wait_for("training under way to end", lambda: not _learning(world), timeout_s=SETTLE_S)
    wait_for("devices to pass what needs no traffic", lambda: not _moving(world), timeout_s=SETTLE_S)


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


def finish(world: World, rollout: str, *, days: int = 90) -> dict[str, Any]:
    """Let days pass until a rollout is over; its last row."""
    said = ""
    for _ in range(days):
        row: dict[str, Any] = world.people[ENGINEER].get(f"/api/v1/rollouts/{rollout}")
        words = "; ".join(row["waiting"])
        if words and words != said:
            say(f"    {world.clock:%d %b}  {words}")
            said = words
        if row["state"] not in OPEN_ROLLOUT:
            say(f"    {world.clock:%d %b}  rollout {row['version']}: {row['state']}. {row.get('cause') or ''}")
            return row
        world.days(1)
        settle(world)
        time.sleep(0.05)
    raise StoryError(f"rollout {rollout} is still {row['state']} after {days} days: {words}")


def answer_drafts(world: World) -> list[str]:
    """Approve and roll out every challenger the sites sent since; their versions."""
    done = []
    for release in releases(world):
        if release["state"] == "draft" and release["source_device"]:
            version = release["version"]
            say(f"  {world.clock:%d %b}  challenger {version} arrived; {APPROVER} approves, canary {CANARY} first")
            approve(world, version)
            finish(world, roll_out(world, version))
            done.append(version)
    return done
