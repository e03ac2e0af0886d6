"""The status: latencies that merge exactly, one verdict, one word of health for each model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve_agent.console.status import Active, HubView, Living, ModelView, UpdateView, findings_of, health_of
from landreeve_agent.console.verdict import Finding, verdict_of
from landreeve_agent.intake.capture import Captured
from landreeve_agent.rooms import Trouble
from landreeve_agent.serving.control import Counts, ModelStatus, WorkerStatus
from landreeve_agent.telemetry import latency
from landreeve_agent.telemetry.machine import Machine
from landreeve_agent.telemetry.recent import SLOT_S, SLOTS, Recent

MICROSECONDS = st.lists(st.floats(1, 1e9), max_size=50)
CALM = Machine(cpu_percent=1, memory_percent=1, disk_percent=1, rss_mb=1)
RUNNING = ModelStatus(model="m", version="1", release="r", wanted="auto", used="cpu", reason="", ready=True)


@given(MICROSECONDS, MICROSECONDS)
def test_merged_counts_are_the_counts_of_all(a: list[float], b: list[float]) -> None:
    assert latency.merge(latency.count(a), latency.count(b)) == latency.count(a + b)


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_nine_percent(durations: list[float], q: float) -> None:
    rank = max(1, -(-int(q * len(durations) * 1_000_000) // 1_000_000))
    exact = sorted(durations)[min(rank, len(durations)) - 1] / 1000
    found = latency.quantile_ms(latency.count(durations), q)
    assert found is not None
    neighbours = [d / 1000 for d in durations]
    assert any(abs(found / near - 1) < 0.1 for near in neighbours)
    assert found > exact * 0.9


def test_counts_survive_the_store() -> None:
    counts = latency.count([5, 80, 80, 7e6])
    assert latency.decode_counts(latency.encode_counts(counts)) == counts
    assert latency.quantile_ms({}, 0.5) is None


def test_the_chart_puts_rows_where_they_were_captured_and_forgets_old_ones() -> None:
    recent = Recent()
    recent.add([Captured("m", "1", 1000, t, failed=False) for t in (100.0, 104.9, 105.0)])
    recent.add([Captured("m", "1", 9e6, 101.0, failed=False), Captured("m", "1", 9e6, 110.0, failed=True)])
    series = recent.series(116.0)
    known = {t: p50 for t, p50 in zip(series.t, series.p50, strict=True) if p50 is not None}
    assert set(known) == {100, 105}
    assert len(series.t) == SLOTS
    assert recent.quantile_ms(0.5, now_s=1000.0, over_s=60) is None
    recent.add([Captured("m", "1", 500, 100.0 + SLOT_S * SLOTS * 2, failed=False)])
    assert recent.series(116.0 + SLOT_S * SLOTS * 3).p50.count(None) == SLOTS


def test_the_worst_finding_speaks_first() -> None:
    found = [Finding("warning", "w"), Finding("error", "e", "/models"), Finding("warning", "v")]
    verdict = verdict_of(found, "")
    assert (verdict.level, verdict.sentence, verdict.detail, verdict.link) == (
        "error", "e", "2 more to look at.", "/models",
    )  # fmt: skip
    two = verdict_of([Finding("warning", "w"), Finding("warning", "v")], "")
    assert (two.sentence, two.detail) == ("Everything works. 2 things to look at.", "w (and 1 more)")
    assert verdict_of([], "quiet").detail == "quiet"


@pytest.mark.parametrize(
    ("living", "drift", "health"),
    [
        (Living(None, None, None), "", "collecting"),
        (Living(Active("1", "r"), RUNNING, None), "stable", "working"),
        (Living(Active("1", "r"), RUNNING, None), "quality_lost", "data_changed"),
        (Living(Active("1", "r"), RUNNING, UpdateView("PROBATION", "")), "drifted", "probation"),
        (Living(Active("1", "r"), None, UpdateView("PROBATION", "")), "", "failing"),
        (Living(Active("1", "r"), RUNNING, UpdateView("ROLLBACK_FAILED", "")), "", "failing"),
    ],
)
def test_health_is_what_matters_most(living: Living, drift: str, health: str) -> None:
    assert health_of(living, drift) == health


def test_everything_that_deserves_a_look_is_found() -> None:
    models = (
        ModelView(name="a", health="failing", reason="the driver is gone"),
        ModelView(name="b", health="data_changed", drift="The wind is stronger than it was."),
        ModelView(name="c", health="working", update=UpdateView("ROLLED_BACK", "Version 2 was worse.")),
    )
    hub = HubView(state="unreachable", waiting=12, certificate_days=3.0)
    full = Machine(cpu_percent=1, memory_percent=1, disk_percent=99, rss_mb=1)
    found = findings_of(models, hub, None, full, (Trouble("link", "no route", 0.0, 3),))
    text = " ".join(finding.sentence for finding in found)
    for words in ("link does not work: no route", "the driver is gone", "The wind", "Version 2 was worse", "12 facts"):
        assert words in text
    for words in ("ends in 3 days", "99 % full"):
        assert words in text
    assert findings_of((), HubView(), None, CALM, ()) == ()


def test_answers_that_could_not_be_kept_are_said() -> None:
    worker = WorkerStatus(pid=1, rss_mb=1, restarts=0, models=(), last_exit="", counts=Counts(capture_failures=4))
    (found,) = findings_of((), HubView(), worker, CALM, ())
    assert (found.level, found.sentence[:43]) == ("error", "4 requests were answered but their rows cou")
