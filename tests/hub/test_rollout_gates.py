"""Gates, windows, sites and what holds a device: one rule a test."""

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import comb
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.wire.schedule import DayWindow, is_open, next_open
from landreeve_hub.api.rollout_views import gates
from landreeve_hub.rollout import commands
from landreeve_hub.rollout.commands import Asked
from landreeve_hub.rollout.machine import decide
from landreeve_hub.rollout.policy import BadPlanError, parse_plan
from landreeve_hub.rollout.pooling import exact, pooled_mean, pooled_rate, pooled_ratio
from landreeve_hub.rollout.resolve import resolve
from landreeve_hub.rollout.roster import Member, Outcome, Roster, Told
from landreeve_hub.rollout.sight import told_of
from landreeve_hub.rollout.state import (
    Around,
    Assign,
    Begin,
    DeviceFact,
    Quality,
    Quarantine,
    RaiseIncident,
    Refused,
    Report,
    Rollout,
    State,
)
from landreeve_hub.rollout.waiting import words

T0 = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
OLD, NEW = "0" * 64, "1" * 64
GOOD = Told(rows=500, errors=1, latency_ratio=1.0, labelled=400, loss_mean=-0.01, loss_m2=2.0)


def made(size: int, plan: dict[str, Any], place: str = "") -> tuple[Rollout, dict[str, DeviceFact]]:
    sites = {f"d-{n:03d}": f"s-{n:03d}" for n in range(size)}
    parsed = parse_plan(plan)
    members = [Member(d, sites[d], n, place=place) for n, wave in enumerate(resolve(parsed, sites)) for d in wave]
    rollout = Rollout(
        id="r-000001", model="m", digest=NEW, version="v2", plan=parsed, state=State.RUNNING, wave_since=T0,
        members=Roster(members),
    )  # fmt: skip
    return rollout, {d: DeviceFact(d, s, running=OLD, running_version="v1", assigned=OLD) for d, s in sites.items()}


def ended(facts: dict[str, DeviceFact], devices: Any, state: str = "COMMITTED", told: Told | None = GOOD) -> None:
    for device in devices:
        report = Report("r-000001", 1, NEW, state, "told", f"{device} said so.", told=told)
        facts[device] = replace(facts[device], report=report, running=NEW if state == "COMMITTED" else OLD)


def installs(orders: Any) -> list[str]:
    return [o.device for o in orders if isinstance(o, Assign) and o.action == "install"]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"waves": [{"count": 0}]}, r"plan.waves\[0\].count"),
        ({"waves": [{"count": 1, "query": "x"}]}, "exactly one of"),
        ({"gate": {"max_failed_share": 1.5}}, "plan.gate.max_failed_share"),
        ({"gate": {"confidence": 0.2}}, "plan.gate.confidence"),
        ({"gate": {"figures": {"max_latency_ratio": -1}}}, "plan.gate.figures.max_latency_ratio"),
        ({"gate": {"figures": {"max_error_rat": 1}}}, "max_error_rat: unknown field; did you mean max_error_rate"),
        ({"windows": {"zone": "Mars/Base"}}, "plan.windows.zone"),
        ({"windows": {"activate": [{"start": "25:00", "end": "04:00"}]}}, r"plan.windows.activate\[0\].start"),
        (
            {"windows": {"activate": [{"start": "22:00", "end": "04:00", "day": []}]}},
            r"\[0\].day: unknown field; did you mean days",
        ),
        ({"watch": {"max_drifted": 1}}, "plan.watch.for_s"),
        ({"strategy": {"kind": "canary", "shares": [0.5, 0.1]}}, "plan.strategy.shares"),
        ({"strategy": {"kind": "ab", "shares": [0.5]}}, "plan.strategy.key"),
        ({"offline": {"policy": "forget"}}, "'forget' is no choice"),
        ({"ping_pong": {"max_returns": 0}}, "plan.ping_pong.max_returns"),
        ({"back": {"waves": []}}, "plan.back.waves"),
    ],
)
def test_bad_plan_is_refused_with_the_fields_name(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPlanError, match=said):
        parse_plan(plan)


def test_waves_by_count_and_by_filter_take_each_device_once() -> None:
    rows = [{"id": "d-1", "site": "a", "labels": {"ring": "pilot"}}, {"id": "d-2", "site": "b"}, {"id": "d-3"}]
    plan = parse_plan({"waves": [{"query": "tag:pilot"}, {"count": 1}, {"rest": True}]})
    assert resolve(plan, {"d-1": "a", "d-2": "b", "d-3": "c"}, rows) == (("d-1",), ("d-2",), ("d-3",))


# --- windows ---


def test_clocks_that_go_forward_move_the_start_of_a_window_behind_the_gap() -> None:
    night = [DayWindow(start="02:30", end="04:00")]
    before = datetime(2026, 3, 28, 23, 30, tzinfo=UTC)
    assert next_open(night, "Europe/Berlin", before) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # 03:30 summer time


def test_clocks_that_go_back_make_the_night_longer() -> None:
    night = [DayWindow(start="02:00", end="04:00")]
    opened = [datetime(2026, 10, 25, hour, minute, tzinfo=UTC) for hour in range(4) for minute in (0, 30)]
    assert sum(is_open(night, "Europe/Berlin", moment) for moment in opened) == 6  # three hours


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 364 * 1440), st.sampled_from(("Europe/Berlin", "Asia/Dubai")))
def test_next_opening_is_open_and_nothing_before_it_is(minutes: int, zone: str) -> None:
    windows = [DayWindow(start="22:00", end="04:00", days=("fri", "sun"))]
    now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    opening = next_open(windows, zone, now)
    assert is_open(windows, zone, opening)
    assert opening == now or not is_open(windows, zone, opening - timedelta(seconds=1))


def test_sites_are_ordered_in_their_own_night_and_the_order_carries_the_schedule() -> None:
    rollout, facts = made(2, {"windows": {"activate": [{"start": "20:00", "end": "06:00"}]}})
    facts["d-000"] = replace(facts["d-000"], labels={"timezone": "Australia/Sydney"})  # 21:00 there
    decision = decide(rollout, facts, T0)
    (order,) = decision.orders
    assert isinstance(order, Assign)
    assert order.schedule is not None
    assert (order.device, order.schedule.zone) == ("d-000", "Australia/Sydney")
    assert (
        words(decision.waiting[-1])
        == "s-001 is outside the maintenance windows; the next opens at 2026-03-01 20:00 UTC"
    )
    assert decision.wake is not None
    assert decision.wake <= datetime(2026, 3, 1, 20, tzinfo=UTC)


def test_agent_that_keeps_to_windows_is_told_in_time_for_the_download() -> None:
    windows = {"download": [{"start": "08:00", "end": "18:00"}], "activate": [{"start": "22:00", "end": "04:00"}]}
    rollout, facts = made(2, {"windows": windows})
    facts["d-001"] = replace(facts["d-001"], features=("schedule/1",))
    decision = decide(rollout, facts, T0)
    assert installs(decision.orders) == ["d-001"]
    assert "no window for downloads meets one for activation" in words(decision.waiting[-1])


@pytest.mark.parametrize(("stage", "opens"), [("ACTIVATING", 22), ("DOWNLOADING", 20), ("PREFLIGHT", None)])
def test_box_under_way_that_keeps_to_a_window_is_said_to_and_not_silent_before(stage: str, opens: int | None) -> None:
    windows = {"download": [{"start": "20:00", "end": "04:00"}], "activate": [{"start": "22:00", "end": "04:00"}]}
    rollout, facts = made(1, {"windows": windows, "gate": {"deadline_s": 3600.0}})
    facts["d-000"] = replace(facts["d-000"], features=("schedule/1",))
    night, day = datetime(2026, 3, 1, 20, 30, tzinfo=UTC), datetime(2026, 3, 2, 5, tzinfo=UTC)
    ordered = decide(rollout, facts, night).rollout
    facts["d-000"] = replace(facts["d-000"], report=Report("r-000001", 1, NEW, stage, "told", "."))
    decision = decide(ordered, facts, day)  # it told so after the night was over
    if opens is None:
        assert "checking" in words(decision.waiting[0])
        return
    until = day.replace(hour=opens)
    said = f"s-000 is outside the maintenance windows; the next opens at 2026-03-02 {opens}:00 UTC"
    assert ([words(one) for one in decision.waiting], decision.wake) == ([said], until)
    in_time = decide(decision.rollout, facts, until + timedelta(minutes=59)).rollout
    assert in_time.members["d-000"].outcome is Outcome.ORDERED
    late = decide(decision.rollout, facts, day.replace(hour=22) + timedelta(minutes=61)).rollout
    assert late.members["d-000"].outcome is Outcome.SILENT
    began = decide(ordered, facts, day - timedelta(minutes=70)).rollout  # what begins in time goes on after the end
    (goes_on,) = decide(began, facts, day - timedelta(minutes=50)).waiting
    assert words(goes_on) in {"s-000 is switching to v2", "s-000 is fetching v2"}


def test_label_that_names_no_time_zone_holds_its_device_and_says_so() -> None:
    rollout, facts = made(1, {"windows": {"activate": [{"start": "00:00", "end": "00:00"}]}})
    facts["d-000"] = replace(facts["d-000"], labels={"timezone": "nowhere"})
    decision = decide(rollout, facts, T0)
    assert decision.orders == ()
    assert "the label timezone names no IANA time zone" in words(decision.waiting[0])


# --- who is held ---


def test_two_boxes_of_one_site_are_never_under_way_at_once() -> None:
    rollout, facts = made(3, {}, place="mall")
    first = decide(rollout, facts, T0)
    assert installs(first.orders) == ["d-000"]
    ended(facts, ["d-000"])
    assert installs(decide(first.rollout, facts, T0).orders) == ["d-001"]


def test_site_busy_with_another_rollout_waits_for_it() -> None:
    rollout, facts = made(1, {})
    decision = decide(rollout, facts, T0, Around(busy={"s-000": "r-000000"}))
    assert "(rollout r-000000), never two at once" in words(decision.waiting[0])


def test_older_rollout_of_the_model_goes_first() -> None:
    rollout, facts = made(1, {})
    decision = decide(rollout, facts, T0, Around(earlier="r-000000"))
    assert (decision.orders, [words(w) for w in decision.waiting]) == (
        (), ["rollout r-000000 of the same model goes first"],
    )  # fmt: skip


@pytest.mark.parametrize(("policy", "outcome"), [("order", "ordered"), ("wait", "waiting"), ("exclude", "excluded")])
def test_box_offline_at_the_start_of_its_wave(policy: str, outcome: str) -> None:
    rollout, facts = made(2, {"offline": {"policy": policy}})
    facts["d-000"] = replace(facts["d-000"], online=False)
    assert decide(rollout, facts, T0).rollout.members["d-000"].outcome.value == outcome


def test_device_in_conflict_is_neither_ordered_nor_counted_silent() -> None:
    rollout, facts = made(1, {})
    facts["d-000"] = replace(facts["d-000"], generation=7, desired=3)
    decision = decide(rollout, facts, T0)
    assert decision.orders == ()
    assert "newer orders than this hub ever gave" in words(decision.waiting[0])
    ordered = decide(rollout, {**facts, "d-000": replace(facts["d-000"], generation=0)}, T0).rollout
    assert decide(ordered, facts, T0 + timedelta(days=9)).rollout.members["d-000"].outcome is Outcome.ORDERED


def test_other_document_under_the_same_number_is_a_conflict_too() -> None:
    assert replace(DeviceFact("d", "s", generation=3, desired=3), document="a", newest="b").conflict


def test_device_that_went_back_too_often_is_left_alone_and_a_person_asked() -> None:
    rollout, facts = made(2, {})
    facts["d-000"] = replace(facts["d-000"], returns=3)
    decision = decide(rollout, facts, T0)
    assert decision.rollout.members["d-000"].cause == "ping_pong"
    assert [o.kind for o in decision.orders if isinstance(o, RaiseIncident)] == ["ping_pong"]


def test_model_that_went_back_too_often_is_paused_instead() -> None:
    rollout, facts = made(1, {})
    first = decide(rollout, facts, T0)
    ended(facts, ["d-000"], "ROLLED_BACK")
    decision = decide(first.rollout, facts, T0, Around(returns=3))
    assert (decision.rollout.state, decision.rollout.cause) == (State.PAUSED, "ping_pong")


# --- gates ---


def canary_done(plan: dict[str, Any], told: Told | None, size: int = 12) -> Any:
    rollout, facts = made(size, {"waves": [{"share": 0.5}, {"rest": True}], **plan})
    first = decide(rollout, facts, T0)
    ended(facts, list(first.rollout.members.flying), told=told)
    return first.rollout, facts


def test_figure_that_is_asked_for_and_not_told_passes_nothing_and_in_the_end_holds() -> None:
    rollout, facts = canary_done({"gate": {"figures": {"max_error_rate": 0.05}, "deadline_s": 600}}, None)
    decision = decide(rollout, facts, T0)
    assert installs(decision.orders) == []
    assert "error rate was told by 0 of 1 devices" in words(decision.waiting[0])
    late = decide(decision.rollout, facts, T0 + timedelta(seconds=601))
    assert (late.rollout.state, late.rollout.cause) == (State.PAUSED, "no_figures")


@pytest.mark.parametrize(
    ("figures", "told", "cause"),
    [
        ({"max_error_rate": 0.02}, Told(rows=450, errors=50), "error_rate"),
        ({"max_latency_ratio": 1.5}, Told(rows=500, latency_ratio=3.0), "latency"),
        ({"max_log_loss_increase": 0.01}, Told(rows=500, labelled=400, loss_mean=0.2, loss_m2=4.0), "accuracy"),
    ],
)
def test_pooled_figure_beyond_its_limit_does_what_the_plan_says(figures: Any, told: Told, cause: str) -> None:
    rollout, facts = canary_done({"gate": {"figures": figures}}, told)
    decision = decide(rollout, facts, T0)
    assert (decision.rollout.state, decision.rollout.cause) == (State.ROLLING_BACK, cause)
    assert [o for o in decision.orders if isinstance(o, Quarantine)]
    assert [o for o in decision.orders if isinstance(o, Begin)]


@pytest.mark.parametrize(
    ("devices", "ratio", "waits"),
    [
        (1, 1.0, "1 (too few to be sure) over 1 device"),
        (2, 1.0, ""),
        (2, 1.4, "over 2 devices, at most 1.5 is not decided"),
    ],
)
def test_strict_latency_gate_passes_on_no_fewer_devices_than_can_bound_it(
    devices: int, ratio: float, waits: str
) -> None:
    asked = {"max_latency_ratio": 1.5, "strict": True}
    plan = {"waves": [{"count": devices}, {"rest": True}], "gate": {"figures": asked, "deadline_s": 600}}
    rollout, facts = made(4, plan)
    first = decide(rollout, facts, T0).rollout
    for number, device in enumerate(first.members.flying):
        ended(facts, [device], told=Told(rows=500, latency_ratio=ratio * (1 + 0.04 * number)))
    decision = decide(first, facts, T0)
    assert decision.rollout.wave == (0 if waits else 1)
    json.dumps(gates(decision.rollout), allow_nan=False)  # the API answers also with what nothing bounds
    if waits:
        assert waits in words(decision.waiting[0])
        late = decide(decision.rollout, facts, T0 + timedelta(seconds=601))
        assert (late.rollout.state, late.rollout.cause) == (State.PAUSED, "no_figures")


def test_good_figures_let_the_next_wave_begin() -> None:
    asked = {"max_error_rate": 0.05, "max_latency_ratio": 2.0, "max_log_loss_increase": 0.05}
    rollout, facts = canary_done({"gate": {"figures": asked}}, GOOD)
    assert decide(rollout, facts, T0).rollout.wave == 1


def test_drift_after_the_end_asks_a_person_and_lost_accuracy_goes_back() -> None:
    watch = {"for_s": 86_400, "max_drifted": 0, "max_quality_lost": 0}
    rollout, facts = made(2, {"watch": watch})
    first = decide(rollout, facts, T0)
    ended(facts, facts)
    done = decide(first.rollout, facts, T0)
    assert done.rollout.state is State.FINISHED
    assert words(done.waiting[0]).startswith("the fleet is watched for drift")
    facts["d-000"] = replace(facts["d-000"], quality=Quality(NEW, "drifted"))
    asked = decide(done.rollout, facts, T0)
    assert asked.rollout.state is State.FINISHED
    assert [o.kind for o in asked.orders if isinstance(o, RaiseIncident)] == ["rollout_watch"]
    assert decide(asked.rollout, facts, T0).orders == ()
    facts["d-001"] = replace(facts["d-001"], quality=Quality(NEW, "quality_lost"))
    assert decide(asked.rollout, facts, T0).rollout.state is State.ROLLING_BACK
    assert decide(asked.rollout, facts, T0 + timedelta(days=2)).rollout.state is State.FINISHED


def test_share_of_a_large_fleet_stops_early_only_when_sure() -> None:
    plan = {"gate": {"max_failed_share": 0.05, "max_in_flight": 100, "on_failure": "pause"}}
    rollout, facts = made(60, plan)
    first = decide(rollout, facts, T0)
    ended(facts, ["d-000"], "ROLLED_BACK")
    assert decide(first.rollout, facts, T0).rollout.state is State.RUNNING
    ended(facts, [f"d-{n:03d}" for n in range(6)], "ROLLED_BACK")
    assert decide(first.rollout, facts, T0).rollout.state is State.PAUSED


def test_retry_orders_anew_and_a_late_answer_to_the_first_try_says_nothing() -> None:
    rollout, facts = made(1, {"gate": {"max_failures": 1, "min_committed": 0}})
    first = decide(rollout, facts, T0)
    ended(facts, ["d-000"], "ROLLED_BACK")
    done = decide(first.rollout, facts, T0)
    answer = commands.obey(done.rollout, "retry", Asked("ann", T0, "k"))
    assert not isinstance(answer, Refused)
    again = decide(answer[0], facts, T0)
    assert [o.rollout for o in again.orders if isinstance(o, Assign)] == ["r-000001.1"]
    assert decide(again.rollout, facts, T0).rollout.members["d-000"].outcome is Outcome.ORDERED
    assert commands.obey(again.rollout, "retry", Asked("ann", T0, "k")) == (again.rollout, ())


# --- pooling ---


@pytest.mark.parametrize(
    ("events", "trials", "low", "high"),
    [  # 95 % on each side, from binomial tables: 1 - 0.05 ** (1 / n) where nothing was seen
        (0, 10, 0.0, 0.2589),
        (1, 10, 0.0051, 0.3942),
        (5, 10, 0.2224, 0.7776),
        (10, 10, 0.7411, 1.0),
        (4, 20, 0.0714, 0.4010),
        (5, 100, 0.0199, 0.1023),
    ],
)
def test_exact_bounds_are_those_of_the_tables(events: int, trials: int, low: float, high: float) -> None:
    assert exact(events, trials, 0.95) == pytest.approx((low, high), abs=6e-5)
    assert exact(trials - events, trials, 0.95) == pytest.approx((1 - high, 1 - low), abs=6e-5)


@pytest.mark.parametrize(("alpha", "step"), [(0.05, 1), (0.005, 7)])
def test_exact_bounds_are_wrong_no_more_often_than_they_say_for_any_share(alpha: float, step: int) -> None:
    """Samples of up to 60, and the shares at which it is wrong most often: those just below each lower bound."""
    for trials in range(1, 61, step):
        lows = [exact(events, trials, 1 - alpha)[0] for events in range(trials + 1)]
        assert lows == sorted(lows)
        for events, share in enumerate(lows[1:], start=1):
            wrong = sum(comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(events, trials + 1))
            assert wrong == pytest.approx(
                alpha, rel=1e-6
            )  # at this share every sample with a bound above has k >= events


@pytest.mark.parametrize("trials", [1e3, 1e6, 1e9, 1e15])
def test_exact_bounds_of_large_samples_are_those_of_the_normal_distribution(trials: float) -> None:
    low, high = exact(trials / 2, trials, 0.95)
    half = 1.645 * (0.25 / min(trials, 1e9)) ** 0.5
    assert (0.5 - low, high - 0.5) == pytest.approx((half, half), rel=0.03)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_bounds_of_pooled_ratios_hold_as_often_as_they_say_on_few_devices(devices: int) -> None:
    draw, rounds = random.Random(7), 600
    pools = [pooled_ratio([draw.lognormvariate(0.0, 0.2) for _ in range(devices)], 0.95) for _ in range(rounds)]
    for missed in (sum(pool.low > 1 for pool in pools), sum(pool.high < 1 for pool in pools)):
        assert missed / rounds <= 0.08  # 5 % and more than three standard errors of 600 rounds


@pytest.mark.parametrize("devices", [2, 3, 4])
def test_bounds_of_pooled_means_of_few_devices_hold_however_unlike_they_are(devices: int) -> None:
    draw, rounds = random.Random(7), 600
    told = [[(400, draw.gauss(0.0, 0.5), 400.0) for _ in range(devices)] for _ in range(rounds)]
    pools = [pooled_mean(samples, 0.95) for samples in told]
    for missed in (sum(pool.low > 0 for pool in pools), sum(pool.high < 0 for pool in pools)):
        assert missed / rounds <= 0.08


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_bounds_of_pooled_means_hold_as_often_as_they_say(spread: float) -> None:
    draw, missed, rounds = random.Random(5), 0, 400
    for _ in range(rounds):
        samples = []
        for _ in range(8):
            truth = draw.gauss(0.0, spread)
            values = [draw.gauss(truth, 1.0) for _ in range(40)]
            mean = sum(values) / 40
            samples.append((40, mean, sum((v - mean) ** 2 for v in values)))
        missed += pooled_mean(samples, 0.95).high < 0.0
    assert missed / rounds <= 0.08  # 5 % and four standard errors of 400 rounds less than that


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(50, 500)), min_size=1, max_size=12))
def test_pooled_rate_lies_within_its_bounds(counts: list[tuple[int, int]]) -> None:
    bounds = pooled_rate(counts, 0.95)
    assert 0 <= bounds.low <= bounds.estimate <= bounds.high <= 1


@pytest.mark.parametrize(
    "shown",
    [
        {"rows": 10**200, "errors": 10**199},
        {"rows": 500, "difference": {"n": 100, "mean": 1e308, "m2": 1.0}},
        {"rows": 500, "difference": {"n": 100, "mean": 0.0, "m2": 1e300}},
        {"rows": 500, "p95_ratio": 1e308},
    ],
)
def test_absurd_figures_of_one_device_keep_no_gate_from_judging(shown: dict[str, Any]) -> None:
    usual = {"rows": 500, "errors": 2, "p95_ratio": 1.1, "difference": {"n": 100, "mean": 0.01, "m2": 1.0}}
    told = [told_of(one) for one in (shown, *[usual] * 5)]
    assert told[0] is None
    assert pooled_ratio([1e15, 1e-15, 1.0, 1.0, 1.0], 1 - 1e-9).high > 1


@pytest.mark.parametrize("already", [False, True])
def test_drift_known_when_a_device_comes_to_its_outcome_counts_at_once(already: bool) -> None:
    """Found by the simulated fleet: it counted only with the device's next window."""
    rollout, facts = made(2, {"waves": [{"rest": True}]})
    drifted = Quality(NEW, "drifted", window=3, first=1, rows=500)
    facts["d-001"] = replace(facts["d-001"], quality=drifted)
    if already:
        facts["d-001"] = replace(facts["d-001"], running=NEW, assigned=NEW)
    rollout = decide(rollout, facts, T0).rollout
    if not already:
        ended(facts, ["d-001"])
        rollout = decide(rollout, facts, T0, changed=["d-001"]).rollout
    assert rollout.members["d-001"].outcome is Outcome.COMMITTED
    assert rollout.members["d-001"].verdict == "drifted"
