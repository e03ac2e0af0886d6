"""Two boxes with one identity are told from one box, whatever befalls the one."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from landreeve_hub.fleet.doubles import QUIET_S, RETURNS, TURNS, Said, Sight, forgive, hear, settle

STATE_S = 60.0


@dataclass
class Process:
    """One start of a supervisor: its run, the store's session counter, its clock's error."""

    run: str
    store: list[int]
    skew_s: float = 0.0
    session: int = field(default=0)

    def connect(self) -> None:
        self.store[0] += 1
        self.session = self.store[0]

    def say(self, now: float) -> Said:
        return Said(self.run, self.session, now + self.skew_s, now)


def see(said: list[Said]) -> Sight:
    sight = Sight()
    for one in said:
        sight = hear(sight, one)
    return sight


LIFE = st.lists(
    st.tuples(
        st.sampled_from(["state", "reconnect", "restart", "restore", "long silence"]),
        st.floats(0.1, 300.0),  # seconds until then
    ),
    max_size=80,
)


@given(LIFE, st.integers(0, TURNS - 1), st.randoms(use_true_random=False))
def test_one_box_is_never_taken_for_two(life: list[tuple[str, float]], late: int, chance: object) -> None:
    """Restarts, lost lines, flapping, a store set back to an older copy; and what an ended process had under way
    arrives late, anywhere after its successor's first words."""
    now, runs, store, said = 1000.0, 0, [0], []
    process = Process("r0", store)
    process.connect()
    for what, pause_s in life:
        now += pause_s
        if what == "restart":
            runs += 1
            process = Process(f"r{runs}", store)
            process.connect()
        elif what == "restore":
            runs += 1
            store = [max(0, store[0] - 7)]
            process = Process(f"r{runs}", store)
            process.connect()
        elif what == "reconnect":
            process.connect()
        elif what == "long silence":
            now += 86_400.0
        said.append(process.say(now))
    for _ in range(min(late, len(said) // 4)):
        # One message overtaken by those after it: late, with its old stamp.
        place = chance.randrange(len(said))  # type: ignore[attr-defined]
        behind = said.pop(place)
        target = min(len(said), place + chance.randrange(1, 4))  # type: ignore[attr-defined]
        heard = said[target - 1].heard if target else behind.heard
        said.insert(target, Said(behind.run, behind.session, behind.stamp, heard))
    sight = see(said)
    assert not sight.since


@given(
    st.integers(0, 500),
    st.integers(0, 500),
    st.floats(-1e6, 1e6),
    st.lists(st.floats(0.05, 60.0), min_size=24, max_size=24),
)
def test_two_boxes_that_take_each_others_session_are_found(
    first: int, second: int, skew_s: float, pauses: list[float]
) -> None:
    """A cloned disk, or a clone of an old copy, with whatever clock: each reconnect throws the other out."""
    now, said = 2e6, []
    boxes = [Process("a", [first]), Process("b", [second], skew_s)]
    for number, pause_s in enumerate(pauses):
        now += pause_s
        box = boxes[number % 2]
        box.connect()
        said.append(box.say(now))
    assert see(said).since


def test_two_boxes_whose_broker_keeps_both_are_found_by_their_states() -> None:
    boxes = [Process("a", [3]), Process("b", [3])]
    for box in boxes:
        box.connect()
    said = [box.say(1000.0 + minute * STATE_S + part) for minute in range(4) for part, box in enumerate(boxes)]
    sight = see(said)
    assert sight.since
    assert sight.since - 1000.0 <= 3 * STATE_S


def test_an_old_agent_that_says_no_run_is_left_alone() -> None:
    assert see([Said("", number, 1.0, 1.0) for number in range(20)]) == Sight()


def test_one_that_is_gone_frees_the_other_after_a_while_and_a_person_at_once() -> None:
    boxes = [Process("a", [0]), Process("b", [0])]
    said = []
    for number in range(2 + 2 * RETURNS):
        boxes[number % 2].connect()
        said.append(boxes[number % 2].say(1000.0 + number))
    sight = see(said)
    assert sight.since
    assert settle(sight, 1000.0 + QUIET_S).since
    assert not settle(sight, 1010.0 + QUIET_S).since
    freed = forgive(sight)
    assert not freed.since
    for number in range(2 * RETURNS):
        boxes[number % 2].connect()
        freed = hear(freed, boxes[number % 2].say(5000.0 + number))
    assert freed.since  # still two: found again
