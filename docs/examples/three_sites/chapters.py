"""The chapters of the year, in order. Each returns evidence: name → (happened, in words)."""

import contextlib
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import bad_models
from loop import (
    APPROVER,
    ENGINEER,
    answer_drafts,
    bring,
    incidents,
    items,
    releases,
    retrains,
    rollouts,
    settle,
    tell_news,
)
from surface import Api, StoryError, wait_for  # noqa: F401  (wait_for: tests wait the same way)
from world import CANARY, CATALOG, MODEL, SITES, World, wanted_ports

Evidence = dict[str, tuple[bool, str]]
LEARN_UNTIL = datetime(2013, 3, 1, 6, tzinfo=UTC)


def open_house(world: World) -> Evidence:
    """Hub, broker, people; three agents enrolled with single-use tokens."""
    world.tell.chapter(
        "A hub and three sites",
        "The hub starts with its broker. Each airport is a site of its own: own processes, own data, own key.",
    )
    people = world.memory.get("people", [])
    if not people:
        world.hub_state.mkdir(parents=True, exist_ok=True)
        with world.tell.doing("making the hub's keys and its authority"):
            world.hub("init", "--set", "http.port=8080", "--set", "https.port=8443", "--set", "fleet=three-airports")
    world.start_hub()
    world.tell.say(f"hub and broker are up: {world.hub_url}")
    if not people:
        _hire(world)
    for name in world.memory.get("people"):
        world.people[name] = Api(world.hub_url, world.memory.get(f"token.{name}"))
    for site in SITES:
        _start_site(world, site)
    online = world.wait("three sites online", lambda: _online(world), timeout_s=60)
    with world.tell.doing("telling each site what its model is about, and starting its application"):
        for site in SITES:
            world.agent(site, "model", "add", str(CATALOG))
            world.start_application(site)
    return {"three sites are enrolled and online": (online == 3, f"{online} of 3")}


def _start_site(world: World, site: str) -> None:
    known = (world.sites[site].state / "identity.json").exists()
    with world.tell.doing(f"{site} {'starts' if known else 'joins the fleet'}"):
        if not known:
            _enrol(world, site)
    world.start_agent(site)
    how = "is back" if known else "made its key, got its certificate with a token that is now used up, and is up"
    world.tell.say(f"{site} {how}")


def _hire(world: World) -> None:
    """Two people: one proposes, another approves. What an interrupted run has done already stays."""
    people = {ENGINEER: "ml-engineer", APPROVER: "approver"}
    known = {user["name"] for user in items(Api(world.hub_url, world.admin_token()).get("/api/v1/users"))}
    for name, role in people.items():
        if name not in known:
            world.hub("user", "add", name, "--role", role, "--no-password")
        world.memory.put(f"token.{name}", world.hub("token", "create", "--user", name)["token"])
    world.memory.put("people", list(people))


IN_A_HURRY = ("telemetry.interval_s=2", "link.reconnect_jitter_s=2", "drift.every_s=0.5", "update.judge_every_s=0.3")


def _enrol(world: World, site: str) -> None:
    token = world.hub("device", "token", site)["token"]
    ports = [f"--set={kind}.port={port}" for kind, port in wanted_ports(site).items()]
    # A year in minutes: what a site does every half minute is done several times a second.
    fast = [f"--set={setting}" for setting in IN_A_HURRY]
    world.agent(site, "init", "--site", site, *ports, *fast)
    world.agent(site, "join", token)


def _online(world: World) -> int:
    fleet = world.people[ENGINEER].get("/api/v1/fleet")
    count = sum(1 for device in fleet["devices"] if device["online"])
    return count if count == len(SITES) else 0


def first_model(world: World) -> Evidence:
    """January and February are collected; EWR trains; canary, then the rest."""
    world.tell.chapter(
        "The first model",
        "No model yet: the applications hand January and February to their sites, as fast as they can. "
        f"Then {CANARY} trains on its own data, and its model goes to {CANARY} first and to the others after.",
    )
    world.pace(0)
    world.advance(LEARN_UNTIL, step=timedelta(days=7))
    world.pace(world.options.speed)
    settle(world)
    version = world.memory.get("first", {}).get("version")
    if not version:
        draft = _train_first(world)
        version = draft["version"]
        world.memory.put("first", {"version": version, "digest": draft["digest"]})
    row = bring(world, version)
    serving = _serving(world, dict.fromkeys(SITES, version))
    hinted, words = _plans(world, version)
    world.tell.say(words)
    return {
        "the first model was trained, approved and rolled out": (row["state"] == "FINISHED", str(row["state"])),
        "every site serves it": (set(serving.values()) == {version}, _each(serving)),
        f"the later sites started from the plan that won at {CANARY}": (hinted, words),
    }


def _plans(world: World, version: str) -> tuple[bool, str]:
    """Whether every site after the canary was told what won there, and how long each one's tests took."""
    rows = world.hub("plans", "list", "--release", f"{MODEL}@{version}", by=ENGINEER)
    reports = {report["site"]: report for row in rows for report in row["reports"]}
    first, later = reports.get(CANARY), {site: reports[site] for site in SITES if site in reports and site != CANARY}
    if first is None or not later:
        return False, "no site has told how it runs the model"
    took = ", ".join(f"{site} {_tried(report)}" for site, report in later.items())
    hinted = len(later) == len(SITES) - 1 and all(report["hints"] for report in later.values())
    return hinted, f"{CANARY} tried {_tried(first)}; {first['name']} won. Boxes of its class start from it: {took}"


def _tried(report: dict[str, Any]) -> str:
    tried = len(report["trials"]) + report["left_out"]
    return f"{tried} plan{'' if tried == 1 else 's'} in {report['seconds']:.1f} s"


def _train_first(world: World) -> dict[str, str]:
    """Train at the canary, or go on waiting for the training an interrupted run began; the draft at the hub."""
    if not world.memory.get("first run"):
        started = world.agent(
            CANARY, "train", "run", "--model", MODEL, "--from", "2013-01-01", "--to", "2013-03-01",
            "--reason", "first model",
        )  # fmt: skip
        world.memory.put("first run", started["id"])
    began = time.monotonic()
    what = f"{CANARY} to train a small network and a gradient boosting on its January and February"
    run = world.wait(what, lambda: _trained(world), timeout_s=900)
    took = time.monotonic() - began
    world.tell.say(f"{CANARY} trained on its own January and February in {took:.0f} s: {_words(run)}")
    draft: dict[str, str] = world.wait("the challenger to arrive at the hub", lambda: _draft(world), timeout_s=120)
    world.tell.say(f"it arrives at the hub as draft {draft['version']}; {APPROVER} approves what {ENGINEER} proposes")
    return draft


def _trained(world: World) -> dict[str, object] | None:
    api = world.sites[CANARY].api
    assert api is not None
    run: dict[str, object] = api.get(f"/api/v1/training/{world.memory.get('first run')}")
    return run if run["state"] in ("finished", "rejected", "failed") else None


def _words(run: dict[str, object]) -> str:
    result = run.get("result") or {}
    return str(result.get("sentence", run.get("state"))) if isinstance(result, dict) else str(result)


def _each(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _draft(world: World) -> dict[str, str] | None:
    return next((r for r in releases(world) if r["state"] == "draft"), None)


def live_until(title: str, about: str, moment: datetime) -> Callable[[World], Evidence]:
    """The year goes on: drift is seen, quality loss confirmed by labels, challengers trained and rolled out."""

    def chapter(world: World) -> Evidence:
        until = min(moment, world.options.told_until)
        world.tell.chapter(title, f"{about} Until {until:%d %B}.")
        step = timedelta(days=7 if world.options.speed == 0 else 1)
        while world.clock < until:
            world.advance(min(world.clock + step, until))
            settle(world)
            tell_news(world)
            answer_drafts(world)
        return {}

    return chapter


def bad_release(world: World) -> Evidence:
    """A damaged model dies in preflight, a worse one in the canary's probation; the others never get them."""
    world.tell.chapter(
        "Two bad releases",
        "Both are signed and rolled out like any other. One has damaged weights: it must die in the preflight test "
        f"at {CANARY}. One merely predicts worse: real traffic must show it, and {CANARY} must return by itself.",
    )
    evidence: Evidence = {}
    answer_drafts(world)
    for name, spoil, where in (
        ("damaged", bad_models.damage, "PREFLIGHT"),
        ("worse", bad_models.worsen, "PROBATION"),
    ):
        evidence |= _bad_one(world, name, spoil, where)
    return evidence


def _bad_one(world: World, name: str, spoil: Callable[..., None], where: str) -> Evidence:
    before = world.memory.get(f"before {name}") or {s: world.sites[s].model_status().get("version") for s in SITES}
    world.memory.put(f"before {name}", before)
    version = world.memory.get(f"bad {name}") or _push_bad(world, name, spoil, before[CANARY] or "")
    world.memory.put(f"bad {name}", version)
    row = bring(world, version, step_days=0.5)
    after = _serving(world, before)
    touched = _touched(row)
    stopped = _where(world, version)
    opened = [i for i in incidents(world) if version in f"{i['sentence']} {i.get('subject')}"]
    world.tell.say(f"{version} ({name}): {opened[0]['sentence'] if opened else row.get('cause')}")
    return {
        f"{name}: stopped in the canary's {where.lower()}": (where in stopped, f"{CANARY}: {' → '.join(stopped)}"),
        f"{name}: every site serves its last good version": (after == before, _each(after)),
        f"{name}: the other sites never got it": (touched <= {CANARY}, f"offered to {', '.join(sorted(touched))}"),
        f"{name}: an incident says why": (bool(opened), opened[0]["id"] if opened else "none"),
    }


def _serving(world: World, expected: dict[str, str]) -> dict[str, str]:
    """What each site serves, once that is as expected or a minute has passed: a status may be a second old."""
    found: dict[str, str] = {}

    def look() -> bool:
        found.update({s: world.sites[s].model_status().get("version", "") for s in SITES})
        return found == expected

    with contextlib.suppress(StoryError):
        world.wait("the sites to serve what they should", look, timeout_s=60)
    return found


def _push_bad(world: World, name: str, spoil: Callable[..., None], good: str) -> str:
    folder = world.options.home / "bad" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    world.hub("model", "pull", f"{MODEL}@{good}", str(folder), by=ENGINEER)
    spoil(folder)
    version: str = world.hub("model", "push", str(folder), "--repack", by=ENGINEER)["version"]
    world.tell.say(f"{ENGINEER} pushes {version}, a {name} copy of {good}; {APPROVER} approves")
    return version


def _touched(row: dict[str, object]) -> set[str]:
    waves = row["waves"]
    assert isinstance(waves, list)
    return {d["site"] for wave in waves for d in wave["devices"] if d["state"] not in ("waiting", "skipped")}


def _where(world: World, version: str) -> list[str]:
    """The states the canary passed through with that version, from its own journal."""
    assert world.sites[CANARY].api is not None
    rows = world.sites[CANARY].api.get("/api/v1/updates")
    rows = rows["transitions"] if isinstance(rows, dict) else rows
    return [r["state"] for r in reversed(rows) if r.get("version") == version]


def hub_away(world: World) -> Evidence:
    """The hub is killed; the sites go on for two weeks; everything arrives afterwards, nothing twice."""
    world.tell.chapter(
        "The hub is away",
        "kill -9 of the hub and its broker, for two weeks of the year. The sites must go on by themselves; on its "
        "return everything must arrive, and nothing twice.",
    )
    away = world.memory.get("away") or {
        "until": (world.clock + timedelta(days=14)).isoformat(),
        "before": {s: world.sites[s].status()["predictions_total"] for s in SITES},
    }
    world.memory.put("away", away)
    world.keeper.kill("hub")
    world.advance(datetime.fromisoformat(away["until"]))
    served = {s: world.sites[s].status()["predictions_total"] - away["before"][s] for s in SITES}
    waiting = sum(world.sites[s].status()["hub"]["waiting"] for s in SITES)
    world.tell.say(f"without the hub the sites answered {sum(served.values()):,} times; {waiting} facts wait for it")
    world.keeper.revive("hub")
    world.find_hub()
    settle(world)
    books = delivery(world)
    clean = all(b["gaps"] == 0 for b in books)
    return {
        "sites served while the hub was away": (min(served.values()) > 0, _each(dict(served))),
        "facts waited on the sites": (waiting > 0, f"{waiting} facts"),
        "everything arrived, no gap": (clean, ", ".join(f"{b['site']} {b['facts']} facts" for b in books)),
    }


def delivery(world: World) -> list[dict[str, object]]:
    return items(world.people[ENGINEER].get("/api/v1/delivery"))


def loop_closed(world: World) -> Evidence:
    """What the year shows: drift was reported, quality lost was confirmed, a challenger was retrained and won."""
    world.tell.chapter("What the year shows", "Evidence from the hub's own books.")
    finished = [r for r in rollouts(world) if r["state"] == "FINISHED"]
    asked = [r for r in retrains(world) if not r["request"].get("reason", "").startswith("first model")]
    drift = world.people[ENGINEER].get(f"/api/v1/drift/{MODEL}")
    windows = drift.get("windows", [])
    lost = [w for w in windows if w["verdict"] == "quality_lost"]
    return {
        "drift windows reported by every site": (
            {w["site"] for w in windows} >= set(SITES), f"{len(windows)} windows"),
        "labels confirmed a loss of quality": (bool(lost), f"{len(lost)} windows"),
        "a retrain was decided": (bool(asked), f"{len(asked)} retrains"),
        "a retrained challenger was rolled out": (len(finished) > 1, f"{len(finished)} finished rollouts"),
    }  # fmt: skip


def require(world: World, evidence: Evidence) -> None:
    """Say each piece of evidence; the story goes on either way and the exit code tells."""
    for name, (happened, words) in evidence.items():
        world.tell.say(f"{'✓' if happened else '✕ NOT:'} {name} ({words})")
