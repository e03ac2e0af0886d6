"""The rollout machine: one rule a test."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import parse_plan
from landreeve_hub.rollout.resolve import resolve
from landreeve_hub.rollout.roster import Member, Outcome, Roster
from landreeve_hub.rollout.state import (
    Around,
    Assign,
    Begin,
    DeviceFact,
    Fleet,
    Quarantine,
    RaiseIncident,
    Refused,
    Report,
    Rollout,
    State,
    Withdraw,
)
from landreeve_hub.rollout.waiting import words

T0 = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
OLD, NEW = "0" * 64, "1" * 64
SITES = {"d-1": "EWR", "d-2": "JFK", "d-3": "LGA"}
CANARY = {"waves": [{"devices": ["EWR"]}, {"rest": True}]}


def fleet(running: str = OLD) -> Fleet:
    return {d: DeviceFact(d, s, running=running, running_version="v1", assigned=running) for d, s in SITES.items()}


def rollout(plan: dict | None = None, state: State = State.RUNNING) -> Rollout:
    parsed = parse_plan(CANARY if plan is None else plan)
    waves = resolve(parsed, SITES)
    members = tuple(Member(d, SITES[d], number) for number, wave in enumerate(waves) for d in wave)
    return Rollout(
        id="r-000001", model="delay", digest=NEW, version="v2", plan=parsed, state=state, members=Roster(members)
    )


def reported(seen: Fleet, device: str, state: str, **more: object) -> Fleet:
    given = {"sentence": f"{SITES[device]} says {state}.", "cause": "told", **more}
    report = Report("r-000001", 2, NEW, state, **given)
    running = NEW if state == "COMMITTED" else seen[device].running
    return {**seen, device: replace(seen[device], report=report, running=running)}


ANN = Asked("ann", T0)


def ordered_back(orders: tuple, seen: Fleet) -> dict[str, str]:
    """What the return that was begun orders, by device."""
    (begun,) = [o.rollout for o in orders if isinstance(o, Begin)]
    decision = decide(begun, {d: replace(f, assigned=NEW) for d, f in seen.items()}, T0)
    assert all(o.action == "rollback" for o in decision.orders)
    return {o.device: o.release for o in decision.orders}


def assigned(orders: tuple, action: str = "install") -> list[str]:
    return [o.device for o in orders if isinstance(o, Assign) and o.action == action]


def test_only_the_canary_is_ordered_first() -> None:
    decision = decide(rollout(), fleet(), T0)
    assert assigned(decision.orders) == ["d-1"]


def test_same_decision_again_orders_nothing_twice() -> None:
    decision = decide(rollout(), fleet(), T0)
    assert decide(decision.rollout, fleet(), T0).orders == ()


def test_nothing_is_ordered_before_approval() -> None:
    decision = decide(rollout(state=State.AWAITING_APPROVAL), fleet(), T0)
    assert decision.orders == ()
    assert words(decision.waiting[0]) == "someone other than the proposer must approve v2"


def test_next_wave_begins_when_the_canary_committed() -> None:
    first = decide(rollout(), fleet(), T0)
    decision = decide(first.rollout, reported(fleet(), "d-1", "COMMITTED"), T0)
    assert assigned(decision.orders) == ["d-2", "d-3"]


def test_rolled_back_canary_stops_the_rollout_and_nobody_else_gets_it() -> None:
    first = decide(rollout(), fleet(), T0)
    seen = reported(fleet(), "d-1", "ROLLED_BACK", sentence="It was worse than v1 on the same rows.")
    decision = decide(first.rollout, seen, T0)
    assert decision.rollout.state is State.ROLLING_BACK
    assert assigned(decision.orders) == []
    assert [o.digest for o in decision.orders if isinstance(o, Quarantine)] == [NEW]
    (incident,) = [o for o in decision.orders if isinstance(o, RaiseIncident)]
    assert "It was worse than v1 on the same rows." in incident.sentence
    assert "JFK and LGA never got it." in incident.sentence


def test_the_way_back_leads_to_each_devices_own_last_good_release() -> None:
    plan = {"waves": [{"rest": True}], "gate": {"max_in_flight": 3}}
    other = "2" * 64
    seen = fleet()
    seen["d-2"] = replace(seen["d-2"], running=other, assigned=other)
    first = decide(rollout(plan), seen, T0)
    for device in ("d-1", "d-2"):
        seen = reported(seen, device, "COMMITTED")
    seen = reported(seen, "d-3", "REJECTED")
    decision = decide(first.rollout, seen, T0)
    assert ordered_back(decision.orders, seen) == {"d-1": OLD, "d-2": other, "d-3": OLD}


def test_rollback_ends_when_everyone_serves_the_prior_release() -> None:
    first = decide(rollout(), fleet(), T0)
    stopped = decide(first.rollout, reported(fleet(), "d-1", "ROLLED_BACK"), T0)
    (begun,) = [o.rollout for o in stopped.orders if isinstance(o, Begin)]
    assert (begun.id, begun.of, begun.kind) == ("r-000001-back", "r-000001", "return")
    assert decide(stopped.rollout, fleet(), T0, Around(child=begun)).rollout.state is State.ROLLING_BACK
    child = decide(decide(begun, fleet(), T0).rollout, fleet(), T0).rollout
    assert child.state is State.FINISHED
    assert decide(stopped.rollout, fleet(), T0, Around(child=child)).rollout.state is State.ROLLED_BACK


def test_first_version_ever_is_withdrawn_from_a_site_that_refused_it() -> None:
    seen = fleet(running="")
    first = decide(rollout(), seen, T0)
    decision = decide(first.rollout, reported(seen, "d-1", "REJECTED"), T0)
    assert [o.device for o in decision.orders if isinstance(o, Withdraw)] == ["d-1"]


def test_something_always_serves_a_committed_first_version_is_kept() -> None:
    plan = {"waves": [{"rest": True}]}
    seen = fleet(running="")
    first = decide(rollout(plan), seen, T0)
    seen = reported(reported(seen, "d-1", "COMMITTED"), "d-2", "ROLLED_BACK")
    decision = decide(first.rollout, seen, T0)
    assert "d-1" not in [o.device for o in decision.orders if isinstance(o, Withdraw | Assign)]


def test_stale_report_of_an_older_rollout_is_no_answer() -> None:
    first = decide(rollout(), fleet(), T0)
    seen = fleet()
    seen["d-1"] = replace(seen["d-1"], report=Report("r-000000", 1, NEW, "ROLLED_BACK"))
    decision = decide(first.rollout, seen, T0)
    assert decision.rollout.members["d-1"].outcome is Outcome.ORDERED


@pytest.mark.parametrize("prior", [OLD, ""])
def test_device_that_was_to_be_tried_again_goes_back_with_the_others(prior: str) -> None:
    first = decide(rollout({**CANARY, "gate": {"max_failures": 5, "min_committed": 0}}), fleet(prior), T0)
    failed = decide(first.rollout, reported(fleet(prior), "d-1", "REJECTED"), T0)
    held, _ = commands.pause(failed.rollout, ANN)  # type: ignore[misc]
    again, _ = commands.retry(held, Asked("ann", T0, "k"))  # type: ignore[misc]
    assert again.members["d-1"].outcome is Outcome.WAITING
    _, orders = commands.roll_back(again, ANN)  # type: ignore[misc]
    if prior:  # its document still names the release that failed
        assert ordered_back(orders, fleet(prior))["d-1"] == OLD
    else:
        assert "d-1" in [order.device for order in orders if isinstance(order, Withdraw)]


def test_late_report_never_takes_a_failure_back() -> None:
    first = decide(rollout({"gate": {"max_failures": 3}}), fleet(), T0)
    failed = decide(first.rollout, reported(fleet(), "d-1", "ROLLED_BACK"), T0)
    decision = decide(failed.rollout, reported(fleet(), "d-1", "COMMITTED"), T0)
    assert decision.rollout.members["d-1"].outcome is Outcome.FAILED


def test_accepted_failure_is_told_once_and_its_site_ends_on_its_last_good_release() -> None:
    plan = {"waves": [{"rest": True}], "gate": {"max_failures": 1}}
    first = decide(rollout(plan), fleet(), T0)
    seen = reported(fleet(), "d-1", "ROLLED_BACK")
    second = decide(first.rollout, seen, T0)
    assert [o.kind for o in second.orders if isinstance(o, RaiseIncident)] == ["update_failed"]
    assert decide(second.rollout, seen, T0).orders == ()
    done = decide(second.rollout, reported(reported(seen, "d-2", "COMMITTED"), "d-3", "COMMITTED"), T0)
    assert done.rollout.state is State.FINISHED
    assert [(o.device, o.release) for o in done.orders if isinstance(o, Assign)] == [("d-1", OLD)]


def test_silent_device_past_its_deadline_pauses_the_rollout() -> None:
    first = decide(rollout(), fleet(), T0)
    decision = decide(first.rollout, fleet(), T0 + timedelta(days=2))
    assert decision.rollout.state is State.PAUSED
    assert "EWR has made no progress since 2026-03-01 10:00 UTC." in decision.rollout.sentence


def test_device_cancelled_on_site_is_no_evidence_against_the_release() -> None:
    first = decide(rollout(), fleet(), T0)
    decision = decide(first.rollout, reported(fleet(), "d-1", "CANCELLED"), T0)
    assert decision.rollout.state is State.PAUSED
    assert not [o for o in decision.orders if isinstance(o, Quarantine)]


def test_device_sent_back_mid_way_is_not_counted_as_failed() -> None:
    plan = {"waves": [{"devices": ["EWR", "JFK"]}, {"rest": True}]}
    first = decide(rollout(plan), fleet(), T0)
    stopped = decide(first.rollout, reported(fleet(), "d-1", "REJECTED"), T0)
    seen = reported(reported(fleet(), "d-1", "REJECTED"), "d-2", "ROLLED_BACK", cause="superseded")
    assert decide(stopped.rollout, seen, T0).rollout.members["d-2"].outcome is Outcome.ORDERED


def test_resumed_in_spite_of_silence_still_asks_for_proof() -> None:
    first = decide(rollout(), fleet(), T0)
    later = T0 + timedelta(days=2)
    paused = decide(first.rollout, fleet(), later)
    resumed = commands.resume(paused.rollout, ANN)
    assert not isinstance(resumed, Refused)
    decision = decide(resumed[0], fleet(), later)
    assert decision.rollout.cause == "no_proof"


def test_removed_device_does_not_hold_the_rollout_up() -> None:
    first = decide(rollout({"waves": [{"rest": True}]}), fleet(), T0)
    seen = reported(reported(fleet(), "d-1", "COMMITTED"), "d-2", "COMMITTED")
    del seen["d-3"]
    assert decide(first.rollout, seen, T0).rollout.state is State.FINISHED


def test_device_already_on_the_release_needs_no_order() -> None:
    decision = decide(rollout({"waves": [{"rest": True}]}), fleet(running=NEW), T0)
    assert decision.orders == ()
    assert decision.rollout.state is State.FINISHED


def test_limit_in_flight_is_kept_and_shown() -> None:
    decision = decide(rollout({"waves": [{"rest": True}], "gate": {"max_in_flight": 2}}), fleet(), T0)
    assert assigned(decision.orders) == ["d-1", "d-2"]
    assert words(decision.waiting[-1]) == "1 more is due, at most 2 update at the same time"


def test_waiting_names_who_proves_and_how_far() -> None:
    first = decide(rollout({"waves": [{"rest": True}]}), fleet(), T0)
    seen = reported(fleet(), "d-1", "COMMITTED")
    seen = reported(seen, "d-2", "PROBATION", rows=412)
    seen = reported(seen, "d-3", "PROBATION", rows=450)
    decision = decide(first.rollout, seen, T0)
    assert [words(w) for w in decision.waiting] == ["JFK and LGA are proving v2 on real traffic (412 of 500 rows)"]


def test_soak_delays_the_next_wave() -> None:
    plan = {**CANARY, "gate": {"soak_s": 3600}}
    first = decide(rollout(plan), fleet(), T0)
    seen = reported(fleet(), "d-1", "COMMITTED")
    soaking = decide(first.rollout, seen, T0 + timedelta(minutes=1))
    assert soaking.orders == ()
    assert words(soaking.waiting[0]) == "wave 1 is watched until 2026-03-01 11:01 UTC"
    assert assigned(decide(soaking.rollout, seen, T0 + timedelta(minutes=62)).orders) == ["d-2", "d-3"]


def test_paused_rollout_orders_nothing_but_still_goes_back_on_failure() -> None:
    first = decide(rollout(), fleet(), T0)
    paused = commands.pause(first.rollout, ANN)
    assert not isinstance(paused, Refused)
    assert decide(paused[0], reported(fleet(), "d-1", "COMMITTED"), T0).orders == ()
    assert decide(paused[0], reported(fleet(), "d-1", "REJECTED"), T0).rollout.state is State.ROLLING_BACK


def test_abort_keeps_who_committed_and_returns_who_is_under_way() -> None:
    plan = {"waves": [{"devices": ["EWR", "JFK"]}, {"rest": True}]}
    first = decide(rollout(plan), fleet(), T0)
    seen = decide(first.rollout, reported(fleet(), "d-1", "COMMITTED"), T0)
    aborted = commands.abort(seen.rollout, ANN)
    assert not isinstance(aborted, Refused)
    assert aborted[0].state is State.ABORTED
    assert ordered_back(aborted[1], fleet()) == {"d-2": OLD}


def test_finished_rollout_can_still_be_rolled_back() -> None:
    first = decide(rollout({"waves": [{"devices": ["EWR"]}]}), fleet(), T0)
    done = decide(first.rollout, reported(fleet(), "d-1", "COMMITTED"), T0)
    assert done.rollout.state is State.FINISHED
    back = commands.roll_back(done.rollout, ANN)
    assert not isinstance(back, Refused)
    assert ordered_back(back[1], reported(fleet(), "d-1", "COMMITTED")) == {"d-1": OLD}


def test_command_out_of_state_is_refused_with_the_reason() -> None:
    refused = commands.pause(rollout(state=State.FINISHED), ANN)
    assert refused == Refused("rollout r-000001 cannot be paused: it is not running (it is FINISHED)")
