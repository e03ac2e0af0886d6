"""The window of facts under way: bounded, patient, paced."""

from hypothesis import given
from hypothesis import strategies as st
from landreeve.wire.topics import Up
from landreeve_agent.link.outbox import Pending
from landreeve_agent.link.window import MAX_RESEND_S, Window


def fact(seq: int) -> Pending:
    return Pending(seq, Up.EVENT, b"{}")


def filled(*seqs: int) -> Window:
    window = Window(5, 3.0)
    window.restart(7)
    for seq in seqs:
        window.sent(fact(seq), 0.0)
    return window


def test_room_is_what_the_hub_has_not_acknowledged() -> None:
    window = filled(1, 2, 3)
    assert window.room(0.0) == 2
    assert window.acknowledge(7, 2)
    assert window.room(0.0) == 4


def test_acknowledgement_of_another_epoch_frees_nothing() -> None:
    window = filled(1, 2)
    assert not window.acknowledge(8, 2)
    assert window.room(0.0) == 3


def test_unanswered_fact_is_due_after_three_seconds_and_then_ever_later() -> None:
    window = filled(1)
    assert window.overdue(2.9) == []
    moments = []
    now = 0.0
    for _ in range(6):
        now += window.next_due(now, full=False) or 0.0
        assert [late.seq for late in window.overdue(now)] == [1]
        moments.append(now)
    assert moments == [3.0, 9.0, 21.0, 45.0, 75.0, 105.0]
    assert moments[-1] - moments[-2] == MAX_RESEND_S


def test_any_answer_ends_the_patience() -> None:
    window = filled(1, 2)
    window.overdue(3.0)
    window.acknowledge(7, 1)
    assert window.next_due(3.0, full=False) == 3.0


def test_restart_forgets_what_was_under_way() -> None:
    window = filled(1, 2)
    window.restart(7)
    assert (window.room(0.0), window.last, window.next_due(0.0, full=False)) == (5, 0, None)


def test_limited_rate_lets_facts_through_one_by_one() -> None:
    window = Window(50, 3.0)
    window.restart(7)
    window.limit(2.0)
    sent = 0
    for tick in range(101):
        now = tick / 10
        for _ in range(window.room(now)):
            sent += 1
            window.sent(fact(sent), now)
        window.acknowledge(7, sent)
    assert 19 <= sent <= 22
    window.limit(None)
    assert window.room(20.0) == 50


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), max_size=60))
def test_never_more_than_the_window_under_way(steps: list[tuple[int, int]]) -> None:
    window = Window(9, 3.0)
    window.restart(7)
    seq, acknowledged = 0, 0
    for now, (wish, ack) in enumerate(steps):
        for _ in range(min(wish, window.room(float(now)))):
            seq += 1
            window.sent(fact(seq), float(now))
        assert seq - acknowledged <= 9
        window.acknowledge(7, min(ack, seq))
        acknowledged = max(acknowledged, min(ack, seq))
