"""A store that was set back, doubted or lost: no number is used twice, nothing waiting is lost or counted twice."""

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from landreeve.wire.codec import decode
from landreeve.wire.messages import Event, Fact
from landreeve_agent.link.numbers import next_session
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.continuity import Note, note_of
from landreeve_agent.store.database import Database
from landreeve_agent.store.rescue import open_store

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
Hub = dict[tuple[int, int], str]


class Box:
    """A store, its outbox, and a hub that counts each epoch and number once."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.db"
        self.hub: Hub = {}
        self.marks: dict[int, int] = {}
        self.state_known = 0

    def start(self, now: datetime = NOW) -> None:
        self.database = open_store(self.path, [], now)
        self.outbox = Outbox(self.database)
        self.now = now

    def make(self, *names: str) -> None:
        def write(db: object) -> None:
            for name in names:
                body = Event(name=name, subject="s", cause="c", sentence="It happened.")
                self.outbox.enqueue(db, body, self.now)  # type: ignore[arg-type]

        asyncio.run(self.database.write(write))

    def send(self, *, acknowledged: bool = True) -> None:
        """Everything that waits, as sessions do it: one epoch after another, the hub acknowledging cumulatively."""

        async def run() -> None:
            for _ in range(9):
                epoch = await self.outbox.epoch(self.now)
                rows = await self.outbox.pending(0, 1000)
                for row in rows:
                    fact = decode(row.body, Fact)
                    assert isinstance(fact.body, Event)
                    assert (fact.epoch, fact.seq) == (epoch, row.seq)
                    if fact.seq > self.marks.get(epoch, 0):
                        self.hub[fact.epoch, fact.seq] = fact.body.name
                        self.marks[epoch] = fact.seq
                if not rows or not acknowledged:
                    return
                await self.outbox.acknowledge(epoch, self.marks[epoch], NOW)

        asyncio.run(run())

    def connect(self) -> int:
        return asyncio.run(self.database.write(lambda db: next_session(db, self.now)))[0]

    def stop(self) -> None:
        self.database.close()

    def copy(self, to: Path) -> None:
        """As a backup tool takes it, with what is in the log."""
        asyncio.run(self.database.write(lambda db: db.conn.execute("INSERT INTO meta VALUES ('backup', '1')")))
        with self.database.connection.conn as plain:
            plain.execute("VACUUM INTO ?", (str(to),))

    def counted(self) -> list[str]:
        return sorted(self.hub.values())


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def spoil(path: Path) -> None:
    path.write_bytes(b"\xa5" * path.stat().st_size)


def put_back(box: Box, copy: Path) -> None:
    shutil.copy(copy, box.path)


def test_copy_put_back_uses_no_number_twice_although_it_made_more_facts_than_the_hub_knew(
    box: Box, tmp_path: Path
) -> None:
    box.start()
    box.make("a", "b")
    box.copy(tmp_path / "copy.db")
    box.make("c", "d")
    box.send()
    box.stop()
    put_back(box, tmp_path / "copy.db")
    box.start(LATER)
    box.make("e", "f", "g")  # without the line: as many numbers as the hub knows of the life that is gone
    box.send()
    assert box.counted() == ["a", "b", "c", "d", "e", "f", "g"], "each once, also a and b, which wait in the copy"
    size = asyncio.run(box.outbox.size())
    assert (size.facts, size.bytes) == (0, 0)
    box.stop()


def test_store_that_was_doubted_and_reads_whole_goes_on_in_a_new_epoch(box: Box) -> None:
    box.start()
    box.make("a", "b")
    box.send(acknowledged=False)
    box.stop()
    Database.mark_of(box.path).touch()
    box.start(LATER)
    box.make("c")
    assert asyncio.run(box.outbox.size()).facts == 3
    box.send()
    assert box.counted() == ["a", "b", "c"]
    assert len({epoch for epoch, _ in box.hub}) == 2
    assert not Database.mark_of(box.path).exists()
    box.stop()


@pytest.mark.parametrize("clock", [LATER, datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)], ids=["right", "1970"])
def test_empty_store_in_the_place_of_a_damaged_one_is_newer_whatever_the_clock_says(box: Box, clock: datetime) -> None:
    box.start()
    for _ in range(7):
        known = box.connect()
    box.make("a", "b")
    box.send()
    box.stop()
    spoil(box.path)
    box.start(clock)
    box.make("c")
    box.send()
    assert box.counted() == ["a", "b", "c"]
    assert max(box.hub)[1] == 1, "the hub takes what has the highest epoch for the newest"
    assert box.connect() > known, "the hub believes no state of an older session"
    box.stop()


def test_kill_between_the_doubt_and_the_new_epoch_doubts_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.start()
    box.make("a")
    box.stop()
    Database.mark_of(box.path).touch()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("landreeve_agent.store.rescue.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            open_store(box.path, [], LATER)
    assert Database.mark_of(box.path).exists()


@pytest.mark.parametrize("end", [Box.stop, lambda box: box.database.connection], ids=["orderly", "killed"])
def test_ordinary_restart_begins_no_epoch(box: Box, end: Callable[[Box], object]) -> None:
    box.start()
    box.make("a")
    epoch = asyncio.run(box.outbox.epoch(NOW))
    end(box)
    first = box.database
    box.start(LATER)
    box.make("b")
    assert asyncio.run(box.outbox.epoch(LATER)) == epoch
    box.send()
    assert box.counted() == ["a", "b"]
    box.stop()
    first.close()


@pytest.mark.parametrize("text", [b"", b"{", b'{"epoch": "x"}'])
def test_unreadable_note_is_no_reason_not_to_start(box: Box, text: bytes) -> None:
    box.start()
    box.make("a")
    box.stop()
    note_of(box.path).write_bytes(text)
    box.start(LATER)
    box.send()
    assert box.counted() == ["a"]
    box.stop()


def test_note_says_how_far_the_store_has_come(box: Box) -> None:
    box.start()
    box.make("a", "b")
    box.connect()
    box.stop()
    note = msgspec.json.decode(note_of(box.path).read_bytes(), type=Note)
    assert (note.seq, note.session) == (3, int(NOW.timestamp()))
    assert note.epoch > 0


def test_whole_folder_put_back_loses_nothing_it_makes_before_the_hub_is_heard(box: Box, tmp_path: Path) -> None:
    """A machine's snapshot: store and note fit together. The hub knows 40 facts; the box makes 60 without the line."""
    box.start()
    box.make(*(f"a{n}" for n in range(10)))
    box.send()
    box.stop()
    shutil.copytree(tmp_path, tmp_path.parent / "snapshot")
    box.start()
    box.make(*(f"b{n}" for n in range(30)))
    box.send()
    known = box.connect()
    box.stop()
    shutil.copytree(tmp_path.parent / "snapshot", tmp_path, dirs_exist_ok=True)
    box.start(LATER)
    box.make(*(f"c{n}" for n in range(60)))
    box.send()
    assert box.counted() == sorted(
        [f"a{n}" for n in range(10)] + [f"b{n}" for n in range(30)] + [f"c{n}" for n in range(60)]
    )
    assert box.connect() > known
    box.stop()


@pytest.mark.parametrize("contact", [True, False], ids=["heard", "unheard"])
@pytest.mark.parametrize("more", [1, 30, 60])
def test_folder_put_back_is_found_out_after_restarts_without_the_hub(tmp_path: Path, more: int, contact: bool) -> None:
    """However many facts the new life made meanwhile; the first of them alone may be taken for one of the lost life."""
    (tmp_path / "state").mkdir()
    box = Box(tmp_path / "state")
    box.start()
    box.make(*(f"before {n}" for n in range(10)))
    box.send(acknowledged=contact)
    box.stop()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    box.start(LATER)
    box.make(*(f"lost life {n}" for n in range(30)))
    box.send()
    box.stop()
    shutil.rmtree(tmp_path / "state")
    shutil.copytree(tmp_path / "copy", tmp_path / "state")
    box.start(LATER + timedelta(seconds=60))
    box.make(*(f"new life {n}" for n in range(more)))
    box.stop()
    box.start(LATER + timedelta(seconds=70))
    box.send()
    new = [name for name in box.counted() if name.startswith("new life")]
    assert len(new) >= more - 1
    assert len(set(new)) == len(new)
    box.stop()


def test_fact_made_while_the_first_answer_is_taken_in_is_no_sign_of_another_life(box: Box) -> None:
    box.start()
    box.make("a")
    box.send()
    box.stop()
    box.start(LATER)
    box.make("b")

    async def both() -> None:
        epoch = await box.outbox.epoch(LATER)
        (first,) = await box.outbox.pending(0, 10)
        body = Event(name="c", subject="s", cause="c", sentence="It happened.")
        made = box.database.write(lambda db: box.outbox.enqueue(db, body, LATER))
        _, seq = await asyncio.gather(box.outbox.acknowledge(epoch, first.seq, LATER), made)
        assert not (await box.outbox.acknowledge(epoch, seq, LATER)).renumbered
        box.stop()
        box.start(LATER + timedelta(seconds=1))
        assert not (await box.outbox.acknowledge(epoch, seq, LATER)).renumbered

    asyncio.run(both())
    box.stop()
