"""The chapters of the year, in order. Each returns evidence: name → (happened, in words)."""

import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import bad_models
from loop import ENGINEER, answer_drafts, approve, finish, incidents, releases, retrains, roll_out, rollouts, settle
from surface import Api, StoryError, wait_for
from world import CANARY, CATALOG, MODEL, SITES, World, say

Evidence = dict[str, tuple[bool, str]]
LEARN_UNTIL = datetime(2013, 3, 1, 6, tzinfo=UTC)


def open_house(world: World) -> Evidence:
    """Hub, broker, people; three agents enrolled with single-use tokens."""
    say("Chapter 1  The hub and three sites")
    started = time.monotonic()
    first = not world.memory.get("people")
    if first:
        world.hub_state.mkdir(parents=True, exist_ok=True)
        world.hub("init", "--set", "http.port=8080", "--set", "https.port=8443", "--set", "fleet=three-airports")
    world.start_hub()
    if first:
        _hire(world)
    for name in world.memory.get("people"):
        world.people[name] = Api(world.hub_url, world.memory.get(f"token.{name}"))
    for offset, site in enumerate(SITES):
        if not (world.sites[site].state / "identity.json").exists():
            _enrol(world, site, offset)
        world.start_agent(site)
    online = wait_for("three sites online", lambda: _online(world), timeout_s=60)
    for site in SITES:
        world.agent(site, "model", "add", str(CATALOG))
        world.start_application(site)
    say(f"  ready in {time.monotonic() - started:.1f} s")
    return {"three sites enrolled and online": (online == 3, f"{online} of 3")}


def _hire(world: World) -> None:
    people = {ENGINEER: "ml-engineer", "omar": "approver"}
    for name, role in people.items():
        world.hub("user", "add", name, "--role", role, "--no-password")
        world.memory.put(f"token.{name}", world.hub("token", "create", "--user", name)["token"])
    world.memory.put("people", list(people))


def _enrol(world: World, site: str, offset: int) -> None:
    token = world.hub("device", "token", site)["token"]
    ports = ("--set", f"console.port={8181 + offset}", "--set", f"serving.port={8281 + offset}")
    # A year in minutes: what a site does every half minute is done several times a second.
    fast = [
        f"--set={setting}" for setting in ("telemetry.interval_s=2", "link.reconnect_jitter_s=2", "drift.every_s=0.5")
    ]
    world.agent(site, "init", "--site", site, *ports, *fast)
    world.agent(site, "join", token)
    say(f"  {site}: key made on the device, certificate issued, token used up")


def _online(world: World) -> int:
    fleet = world.people[ENGINEER].get("/api/v1/fleet")
    count = sum(1 for device in fleet["devices"] if device["online"])
    return count if count == len(SITES) else 0


def first_model(world: World) -> Evidence:
    """January and February are collected; EWR trains; canary, then the rest."""
    say("Chapter 2  The first model")
    say("  January and February: no model yet, the applications hand their departures to the intake API")
    world.advance(LEARN_UNTIL)
    settle(world)
    started = time.monotonic()
    run = world.agent(
        CANARY, "train", "run", "--model", MODEL, "--from", "2013-01-01", "--to", "2013-03-01",
        "--reason", "first model", "--wait",
    )  # fmt: skip
    say(f"  {CANARY} trained on its own January and February in {time.monotonic() - started:.0f} s: {_words(run)}")
    draft = wait_for("the challenger to arrive at the hub", lambda: _draft(world), timeout_s=120)
    approve(world, draft["version"])
    row = finish(world, roll_out(world, draft["version"]))
    world.memory.put("first", {"version": draft["version"], "digest": draft["digest"]})
    serving = {s: world.sites[s].model_status().get("version") for s in SITES}
    return {
        "first model trained, approved, rolled out canary first": (row["state"] == "FINISHED", row["state"]),
        "every site serves it": (set(serving.values()) == {draft["version"]}, str(serving)),
    }


def _words(run: dict[str, object]) -> str:
    result = run.get("result") or {}
    return str(result.get("sentence", run.get("state"))) if isinstance(result, dict) else str(result)


def _draft(world: World) -> dict[str, str] | None:
    return next((r for r in releases(world) if r["state"] == "draft"), None)


def live_until(moment: datetime) -> Callable[[World], Evidence]:
    """The year goes on: drift is seen, quality loss confirmed by labels, challengers trained and rolled out."""

    def chapter(world: World) -> Evidence:
        until = min(moment, world.options.end)
        say(f"Chapter    The year goes on until {until:%d %B}")
        step = timedelta(days=7 if world.options.speed == 0 else 1)
        while world.clock < until:
            world.advance(min(world.clock + step, until))
            settle(world)
            answer_drafts(world)
        return {}

    return chapter


def bad_release(world: World) -> Evidence:
    """A damaged model dies in preflight, a worse one in the canary's probation; the others never get them."""
    say("Chapter 3  Two bad releases, signed and rolled out like any other")
    before = {s: world.sites[s].model_status().get("version") for s in SITES}
    evidence: Evidence = {}
    for name, spoil, where in (
        ("damaged", bad_models.damage, "PREFLIGHT"),
        ("worse", bad_models.worsen, "PROBATION"),
    ):
        version, row = _push_bad(world, name, spoil, before[CANARY] or "")
        after = {s: world.sites[s].model_status().get("version") for s in SITES}
        touched = _touched(row)
        stopped = _where(world, version)
        opened = [i for i in incidents(world) if version in f"{i['sentence']} {i.get('subject')}"]
        evidence |= {
            f"{name}: stopped by the canary's {where.lower()}": (where in stopped, f"path on {CANARY}: {stopped}"),
            f"{name}: every site is back on its last good version": (after == before, f"{before} → {after}"),
            f"{name}: other sites never got it": (touched <= {CANARY}, f"offered to {sorted(touched)}"),
            f"{name}: incident opened with its cause": (bool(opened), opened[0]["sentence"] if opened else "none"),
        }
        say(f"  {version} ({name}): {opened[0]['sentence'] if opened else row.get('cause')}")
    return evidence


def _push_bad(world: World, name: str, spoil: Callable[..., None], good: str) -> tuple[str, dict[str, object]]:
    folder = world.options.home / "bad" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    world.hub("model", "pull", f"{MODEL}@{good}", str(folder), by=ENGINEER)
    spoil(folder)
    pushed = world.hub("model", "push", str(folder), "--repack", by=ENGINEER)
    approve(world, pushed["version"])
    return pushed["version"], finish(world, roll_out(world, pushed["version"]))


def _touched(row: dict[str, object]) -> set[str]:
    waves = row["waves"]
    assert isinstance(waves, list)
    return {d["site"] for wave in waves for d in wave["devices"] if d["state"] not in ("waiting", "skipped")}


def _where(world: World, version: str) -> list[str]:
    """The states the canary passed through with that version, from its own journal."""
    assert world.sites[CANARY].api is not None
    rows = world.sites[CANARY].api.get("/api/v1/updates")
    rows = rows["transitions"] if isinstance(rows, dict) else rows
    return [r["state"] for r in rows if r.get("version") == version]


def hub_away(world: World) -> Evidence:
    """The hub is killed; the sites go on for two weeks; everything arrives afterwards, nothing twice."""
    say("Chapter 4  The hub is away for two weeks")
    before = {s: world.sites[s].status()["predictions_total"] for s in SITES}
    world.keeper.kill("hub")
    world.days(14)
    served = {s: world.sites[s].status()["predictions_total"] - before[s] for s in SITES}
    waiting = sum(world.sites[s].status()["hub"]["waiting"] for s in SITES)
    say(f"  without the hub the sites answered {sum(served.values()):,} predictions; {waiting} facts wait for it")
    world.keeper.revive("hub")
    world.find_hub()
    settle(world)
    books = delivery(world)
    clean = all(b["gaps"] == 0 for b in books)
    return {
        "sites served while the hub was away": (min(served.values()) > 0, str(served)),
        "facts waited on the sites": (waiting > 0, f"{waiting} facts"),
        "everything arrived, no gap": (clean, "; ".join(f"{b['site']} {b['facts']} facts" for b in books)),
    }


def delivery(world: World) -> list[dict[str, object]]:
    answer = world.people[ENGINEER].get("/api/v1/delivery")
    rows: list[dict[str, object]] = answer["items"] if isinstance(answer, dict) else answer
    return rows


def loop_closed(world: World) -> Evidence:
    """What the year shows: drift was reported, quality lost was confirmed, a challenger was retrained and won."""
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


def require(evidence: Evidence, chapter: str) -> None:
    """Say each piece of evidence; the story goes on either way and the exit code tells."""
    for name, (happened, words) in evidence.items():
        say(f"  {'✓' if happened else '✕ NOT'}  {name}  ({words})")
    if not evidence and chapter == "":
        raise StoryError("a chapter without evidence")
