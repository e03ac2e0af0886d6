"""Which failures speak against the release: the table, and what a rollout does by it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.rollout import book, commands
from landreeve_hub.rollout.back import stop
from landreeve_hub.rollout.blame import BY_THE_FLEET, NOT_THE_RELEASE, THE_RELEASE, WITH_PARENT
from landreeve_hub.rollout.gates import figures
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.roster import Back, Told
from landreeve_hub.rollout.sight import see
from landreeve_hub.rollout.state import Begin, DeviceFact, Quarantine, Report, State
from landreeve_hub.store import tables
from sqlalchemy import select, update

from tests.hub.hub_without_broker import Hub, rolled_out
from tests.hub.test_rollout_gates import NEW, T0, made
from tests.hub.test_rollout_machine import ANN

AGENT = Path(__file__).parents[2] / "agent" / "landreeve_agent"
# What makes an update fail, and where: the first literal is the cause. In the trust and serving rooms others are made.
_MAKERS = {
    "Fail", "Failed", "FetchFailedError", "CannotBuildError", "LoadFailedError", "_UnfitError", "PreflightFailed",
    "RefusedError", "left", "_leave", "_roll_back", "_cancel",
}  # fmt: skip


def told_causes() -> Iterator[tuple[str, str]]:
    """Every cause that the agent's source gives a failed update, with its file."""
    for path in sorted(AGENT.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            given = [*call.args, *(word.value for word in call.keywords if word.arg == "cause")]
            literals = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if name in _MAKERS and literals and re.fullmatch(r"[a-z_]{3,40}", literals[0]):
                yield literals[0], path.name
        if path.parent.name == "update":
            yield from ((cause, path.name) for cause in chosen_causes(path))


def chosen_causes(path: Path) -> Iterator[str]:
    """Causes that a line chooses between before it makes the failure: ``cause = "a" if … else "b"``."""
    for line in ast.walk(ast.parse(path.read_text())):
        if not isinstance(line, ast.Assign) or not isinstance(line.value, ast.IfExp):
            continue
        for one in (line.value.body, line.value.orelse) if ast.unparse(line.targets[0]) == "cause" else ():
            if isinstance(one, ast.Constant):
                yield str(one.value)


def test_every_cause_an_agent_tells_is_judged_with_a_reason() -> None:
    found = dict(told_causes())
    assert len(found) > 50, "the causes are no longer found in the agent's source"
    assert "not_reconnected" in found
    judged = NOT_THE_RELEASE | THE_RELEASE
    assert {cause: file for cause, file in found.items() if cause not in judged} == {}
    assert not NOT_THE_RELEASE.keys() & (THE_RELEASE | BY_THE_FLEET).keys()
    assert all(len(reason) > 15 for reason in (judged | BY_THE_FLEET).values())


def test_what_the_agent_does_not_hold_against_a_release_the_hub_does_not_either() -> None:
    tree = ast.parse((AGENT / "update" / "machine.py").read_text())
    (own,) = [
        n for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "_NOT_THE_RELEASE"
    ]
    causes = {one.value for one in ast.walk(own.value) if isinstance(one, ast.Constant)}
    assert {"disk_full", "accelerator_lost"} <= causes <= NOT_THE_RELEASE.keys()


def told(facts: dict[str, DeviceFact], device: str, cause: str, shown: Told | None = None) -> None:
    report = Report("r-000001", 1, NEW, "ROLLED_BACK", cause, f"{device} says {cause}.", told=shown)
    facts[device] = replace(facts[device], report=report)


def after(causes: list[str], plan: dict[str, Any] | None = None, size: int = 4) -> Any:
    """A rollout over ``size`` devices at once, and the decision when the first ones failed for these causes."""
    rollout, facts = made(size, {"gate": {"max_in_flight": size}} | (plan or {}))
    first = decide(rollout, facts, T0).rollout
    for number, cause in enumerate(causes):
        told(facts, f"d-{number:03d}", cause)
    return decide(first, facts, T0), facts


def quarantined(orders: Any) -> bool:
    return any(isinstance(order, Quarantine) for order in orders)


@pytest.mark.parametrize("cause", sorted(NOT_THE_RELEASE))
def test_cause_that_is_not_the_releases_holds_the_rollout_and_leads_nobody_back(cause: str) -> None:
    decision, _ = after([cause])
    assert (decision.rollout.state, decision.rollout.cause) == (State.PAUSED, cause)
    assert not quarantined(decision.orders)
    assert not any(isinstance(order, Begin) for order in decision.orders)
    assert NOT_THE_RELEASE[cause] in decision.rollout.sentence


@pytest.mark.parametrize("cause", [*sorted(THE_RELEASE), "of_a_newer_agent", ""])
def test_cause_that_is_the_releases_takes_it_back_and_quarantines_it(cause: str) -> None:
    decision, _ = after([cause])
    assert decision.rollout.state is State.ROLLING_BACK
    assert quarantined(decision.orders)


def test_a_full_disk_beside_a_bad_release_hides_nothing() -> None:
    decision, _ = after(["disk_full", "golden_mismatch"])
    assert decision.rollout.state is State.ROLLING_BACK
    assert decision.rollout.cause == "golden_mismatch"


def test_resumed_in_spite_of_full_disks_the_first_failure_of_the_release_still_counts() -> None:
    decision, facts = after(["disk_full", "disk_full"])
    (resumed, _) = commands.obey(decision.rollout, "resume", ANN)  # type: ignore[misc]
    again = decide(resumed, facts, T0)
    assert again.rollout.state is State.RUNNING
    told(facts, "d-002", "golden_mismatch")
    assert decide(again.rollout, facts, T0).rollout.state is State.ROLLING_BACK


def test_trying_a_site_again_takes_back_no_other_acceptance() -> None:
    decision, facts = after(["disk_full", "no_firmware"])
    (resumed, _) = commands.obey(decision.rollout, "resume", ANN)  # type: ignore[misc]
    told(facts, "d-002", "disk_failed")
    paused = decide(resumed, facts, T0).rollout
    assert paused.state is State.PAUSED
    (again, _) = commands.obey(paused, "retry", commands.Asked("ann", T0, devices=("d-002",)))  # type: ignore[misc]
    assert again.accepted_failures == 2  # the two that a person went on in spite of
    (again, _) = commands.obey(again, "resume", ANN)  # type: ignore[misc]
    (once, _) = commands.obey(again, "retry", commands.Asked("ann", T0, devices=("d-000",)))  # type: ignore[misc]
    assert once.accepted_failures == 1
    assert decide(once, facts, T0).rollout.state is State.RUNNING


def test_a_person_may_have_the_fleet_go_back_for_its_sites_sake_and_the_release_stays_free() -> None:
    decision, _ = after(["disk_full"], {"actions": {"site": "rollback"}})
    assert decision.rollout.state is State.ROLLING_BACK
    assert not quarantined(decision.orders)


def test_downloads_that_never_end_are_the_lines_and_not_the_releases() -> None:
    for stage, ends in (("DOWNLOADING", State.PAUSED), ("PREFLIGHT", State.ROLLING_BACK)):
        rollout, facts = made(2, {})
        seen = replace(facts["d-000"], report=Report("r-000001", 1, NEW, stage))
        under_way = decide(decide(rollout, facts, T0).rollout, facts | {"d-000": seen}, T0).rollout
        told(facts, "d-000", "attempts_exhausted")
        assert decide(under_way, facts, T0).rollout.state is ends


def test_share_of_a_large_fleet_is_judged_apart_as_well() -> None:
    gate = {"max_failed_share": 0.1, "large_from": 10, "max_in_flight": 40}
    plan = {"gate": gate, "waves": [{"count": 20}, {"rest": True}]}
    rollout, facts = made(40, plan)
    first = decide(rollout, facts, T0).rollout
    for n in range(20):
        told(facts, f"d-{n:03d}", "disk_full") if n < 3 else None
        if n >= 3:
            facts[f"d-{n:03d}"] = replace(
                facts[f"d-{n:03d}"], running=NEW, report=Report("r-000001", 1, NEW, "COMMITTED")
            )
    held = decide(first, facts, T0)
    assert (held.rollout.state, quarantined(held.orders)) == (State.PAUSED, False)
    for n in range(3):
        told(facts, f"d-{n:03d}", "error_rate")
    assert quarantined(decide(first, facts, T0).orders)


def test_errors_while_an_accelerator_went_away_are_no_figure_of_the_release() -> None:
    plan = {"gate": {"max_failures": 3, "figures": {"max_error_rate": 0.01}, "max_in_flight": 4}}
    rollout, facts = made(4, plan)
    first = decide(rollout, facts, T0).rollout
    told(facts, "d-000", "accelerator_lost", Told(rows=100, errors=90))
    told(facts, "d-001", "error_rate", Told(rows=100, errors=50))
    seen = decide(first, facts, T0).rollout
    (rate,) = figures(seen)
    assert rate.bounds.estimate == pytest.approx(50 / 150)


async def test_full_disk_of_a_site_quarantines_nothing_and_is_no_ping_pong(hub: Hub) -> None:
    """Through the doors: paused with the reason, the release still approved, and the site tried again once mended."""
    await hub.enrol()
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        row = await rolled_out(hub, ann, bob)
        for _ in range(3):  # as often as would leave a site alone
            await hub.report("d-1", "REJECTED", row["release"], row["id"], cause="disk_full")
            shown = (await ann.get(f"/api/v1/rollouts/{row['id']}")).json()
            assert (shown["state"], shown["cause"]) == ("PAUSED", "disk_full")
            assert "does not speak against the release" in shown["waiting"][0]
            assert (await ann.post(f"/api/v1/rollouts/{row['id']}/abort")).status_code == 200
            asked = {"model": "delay", "release": row["release"], "plan": {"waves": [{"devices": ["EWR"]}]}}
            again = await ann.post("/api/v1/rollouts", json=asked)
            assert again.status_code == 201, again.text  # no reason to force it is asked for
            row = again.json()
            assert (await bob.post(f"/api/v1/rollouts/{row['id']}/approve")).status_code == 200
    kept = await hub.store.read(lambda c: book.load(c, row["id"]))
    assert (await hub.store.read(lambda c: see(c, kept.rollout, hub.now)))["d-1"].returns == 0


OLD = "0" * 64


async def serves_old(hub: Hub, device: str) -> None:
    """The box is back at what it had, as its newest order says."""

    def apply(connection: Any) -> None:
        newest = select(tables.desired.c.generation).where(tables.desired.c.device == device)
        generation = connection.execute(newest).scalar() or 0
        served = {"model": "delay", "version": "old", "release": OLD, "state": "working"}
        doc = {"models": [served], "generation": generation}
        connection.execute(update(tables.devices).where(tables.devices.c.id == device).values(doc=doc))

    await hub.store.write(apply)
    await hub.runner.tick(hub.now)


async def returns(hub: Hub, rollout: str) -> int:
    """How often the release went back on d-1, as the next rollout of it would see that."""
    kept = await hub.store.read(lambda c: book.load(c, rollout))
    next_one = msgspec.structs.replace(kept.rollout, id="r-999999")
    return (await hub.store.read(lambda c: see(c, next_one, hub.now)))["d-1"].returns


@pytest.mark.parametrize(
    ("verb", "reached", "back"),
    [
        ("abort", "PROBATION", Back.RETURNED),
        ("rollback", "PROBATION", Back.RETURNING),
        ("rollback", "COMMITTED", Back.RETURNING),
    ],
)
async def test_what_a_person_took_back_is_no_ping_pong(hub: Hub, verb: str, reached: str, back: Back) -> None:
    await hub.enrol()
    await serves_old(hub, "d-1")
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        row = await rolled_out(hub, ann, bob)
        await hub.report("d-1", reached, row["release"], row["id"])
        who = ann if verb == "abort" else bob
        assert (await who.post(f"/api/v1/rollouts/{row['id']}/{verb}")).status_code == 200
        kept = await hub.store.read(lambda c: book.load(c, row["id"]))
        assert kept.rollout.members["d-1"].back is back
        assert await returns(hub, row["id"]) == 0
        await serves_old(hub, "d-1")
        assert await returns(hub, row["id"]) == 0


async def test_what_the_release_did_itself_still_counts_under_a_rollout_a_person_took_back(hub: Hub) -> None:
    """One site left it by itself within what is accepted; then a person leads all of them back."""
    await hub.enrol()
    await serves_old(hub, "d-1")
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        row = await rolled_out(hub, ann, bob)
        await hub.report("d-1", "ROLLED_BACK", row["release"], row["id"], cause="error_rate")
        assert (await bob.post(f"/api/v1/rollouts/{row['id']}/rollback")).status_code == 200
    assert await returns(hub, row["id"]) == 1


async def test_site_led_back_by_a_gate_counts_and_with_its_parent_as_that_does(hub: Hub) -> None:
    await hub.enrol()
    await serves_old(hub, "d-1")
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        row = await rolled_out(hub, ann, bob)
        await hub.report("d-1", "COMMITTED", row["release"], row["id"])
        kept = await hub.store.read(lambda c: book.load(c, row["id"]))
        for cause, counts in (("error_rate", 1), ("disk_full", 0), ("aborted", 0), ("rolled_back", 0)):
            parent, _ = stop(kept.rollout, cause, "So it was.", hub.now)
            late = msgspec.structs.replace(kept.rollout, id=f"{row['id']}-late", kind="late", of=row["id"])
            led, _ = stop(late, WITH_PARENT, "With its parent.", hub.now)

            def keep(connection: Any, rows: tuple[Any, ...] = (parent, led)) -> None:
                for one in rows:
                    connection.execute(tables.rollouts.delete().where(tables.rollouts.c.id == one.id))
                    connection.execute(
                        tables.rollout_members.delete().where(tables.rollout_members.c.rollout == one.id)
                    )
                    book.insert_new(connection, one, "hub", hub.now)

            await hub.store.write(keep)
            assert await returns(hub, row["id"]) == 2 * counts, cause
