"""Every fact counts once, in whatever order and however often it comes."""

from hypothesis import given
from hypothesis import strategies as st
from landreeve.wire.messages import DeviceState, Gap
from landreeve_hub.ingest.accept import MAX_AHEAD, Apply, Progress, Reject, Repeat, decide
from landreeve_hub.ingest.presence import Known, counts

EPOCH = 1_700_000_000_000_000_000


def _deliver(order: list[int]) -> tuple[list[int], Progress]:
    """The numbers that counted, and the progress after them."""
    progress, counted = Progress(), []
    for seq in order:
        decision = decide(progress, EPOCH, seq)
        assert isinstance(decision, Apply | Repeat)
        progress = decision.progress
        if isinstance(decision, Apply):
            counted.append(seq)
    return counted, progress


@given(st.permutations(list(range(1, 40))), st.lists(st.integers(1, 39)))
def test_each_number_counts_once_in_any_order_with_any_repeats(order: list[int], repeats: list[int]) -> None:
    counted, progress = _deliver([*order[:20], *repeats, *order, *repeats])
    assert sorted(counted) == list(range(1, 40))
    assert progress == Progress(seq=39)


@given(st.lists(st.integers(1, 60)))
def test_the_mark_never_passes_a_number_that_has_not_come(order: list[int]) -> None:
    _, progress = _deliver(order)
    assert set(range(1, progress.seq + 1)) <= set(order)
    assert progress.seq + 1 not in order


def test_what_came_early_counts_at_once_and_not_again() -> None:
    early = decide(Progress(seq=3), EPOCH, 6)
    assert early == Apply(Progress(seq=3, above=frozenset({6})))
    assert isinstance(decide(Progress(seq=3, above=frozenset({6})), EPOCH, 6), Repeat)


def test_a_gap_stands_for_every_number_it_names() -> None:
    gap = Gap(first=4, last=9, count=6)
    assert decide(Progress(seq=3), EPOCH, 9, gap) == Apply(Progress(seq=9))


def test_a_gap_before_its_turn_waits_for_what_is_missing() -> None:
    gap = Gap(first=4, last=9, count=6)
    waiting = decide(Progress(seq=1), EPOCH, 9, gap)
    assert isinstance(waiting, Apply)
    assert waiting.progress.seq == 1
    filled = decide(decide(waiting.progress, EPOCH, 3).progress, EPOCH, 2)  # type: ignore[union-attr]
    assert filled == Apply(Progress(seq=9))


def test_a_gap_with_the_number_of_a_metric_that_came_still_counts_as_gap() -> None:
    gap = Gap(first=4, last=9, count=6)
    assert decide(Progress(seq=3, above=frozenset({9, 10})), EPOCH, 9, gap) == Repeat(Progress(seq=10))


def test_a_gap_that_does_not_name_every_number_is_refused() -> None:
    assert isinstance(decide(Progress(), EPOCH, 9, Gap(first=4, last=9, count=2)), Reject)
    assert isinstance(decide(Progress(), EPOCH, 9, Gap(first=4, last=90, count=87)), Reject)


def test_numbers_that_are_none_are_refused_with_the_rule() -> None:
    for epoch, seq in ((0, 1), (2**63, 1), (EPOCH, 0), (EPOCH, 2**63)):
        assert isinstance(decide(Progress(), epoch, seq), Reject)


def test_a_device_that_never_sends_the_next_number_is_stopped() -> None:
    full = Progress(seq=1, above=frozenset(range(3, 3 + MAX_AHEAD)))
    assert isinstance(decide(full, EPOCH, 5000), Reject)
    assert decide(full, EPOCH, 2) == Apply(Progress(seq=2 + MAX_AHEAD))


def _state(session: int, *, online: bool) -> DeviceState:
    return DeviceState(session=session, online=online, at="2026-01-01T00:00:00Z")


def test_the_will_of_an_older_session_is_ignored() -> None:
    assert not counts(Known(8, online=True), _state(7, online=False))
    assert counts(Known(8, online=True), _state(8, online=False))


def test_nothing_of_a_session_that_ended_brings_the_device_back() -> None:
    assert not counts(Known(8, online=False), _state(8, online=True))
    assert counts(Known(8, online=False), _state(9, online=True))
