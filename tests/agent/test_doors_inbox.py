"""The watched folder: what is put in comes out answered, once, whatever happens in between."""

import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from os import getpid, utime
from pathlib import Path

import msgspec
import pytest
from landreeve_agent.doors.connection import Connection, Server
from landreeve_agent.doors.errors import UnreachableError
from landreeve_agent.doors.inbox import Inbox, InboxOptions, StopError
from landreeve_agent.doors.kept import Stop

from tests.agent.serving_worker import ServingWorker, serving_worker

HEADER = "id,hour,wind,carrier\n"
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingWorker]:
    with serving_worker(tmp_path_factory.mktemp("worker")) as made:
        made.serve()
        yield made


class Watched:
    """An inbox and its folder, with a clock of its own."""

    def __init__(self, worker: ServingWorker, folder: Path, now: datetime = NOW) -> None:
        self.options = InboxOptions(server=Server(*worker.address), folder=str(folder), settle_s=5, rows=8)
        self.connection = Connection(self.options.server)
        self.inbox = Inbox(self.options, self.connection, now=lambda: now)
        self.room = folder / "delay"
        self.stop = Stop()
        self.monotonic = 0.0

    def look(self, after_s: float = 6.0) -> int:
        self.monotonic += after_s
        return self.inbox.look(self.monotonic, self.stop)

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.room / folder).iterdir())

    def put(self, name: str, text: str) -> None:
        (self.room / "in").mkdir(parents=True, exist_ok=True)
        (self.room / "in" / name).write_text(text)

    def answered(self, name: str) -> list[str]:
        with (self.room / "out" / name).open(newline="") as file:
            return [row["id"] for row in csv.DictReader(file)]


@pytest.fixture
def watched(worker: ServingWorker, tmp_path: Path) -> Iterator[Watched]:
    made = Watched(worker, tmp_path / "batch")
    yield made
    made.connection.close()


def rows(n: int, tag: str = "r") -> str:
    return HEADER + "".join(f"{tag}{i},{i % 24},4,UA\n" for i in range(n))


def test_a_file_is_taken_only_when_it_has_rested(watched: Watched) -> None:
    assert watched.look() == 0  # makes the folders
    watched.put("a.csv", rows(3))
    assert watched.look(1) == 0
    watched.put("a.csv", rows(20))
    assert [watched.look(4), watched.look(4)] == [0, 0]
    assert watched.look(4) == 1
    assert watched.answered("a.csv") == [f"r{i}" for i in range(20)]
    assert watched.names("in") == []
    assert watched.names("done") == ["a.20260131T093000.000000Z.csv"]
    assert watched.names(".work") == []


def test_unfinished_names_links_and_folders_are_left_alone(watched: Watched, tmp_path: Path) -> None:
    watched.look()
    (tmp_path / "secret.csv").write_text(rows(1))
    for name in (".a.csv", "a.csv.part", "a.csv.tmp"):
        watched.put(name, rows(1))
    (watched.room / "in" / "link.csv").symlink_to(tmp_path / "secret.csv")
    (watched.room / "in" / "folder.csv").mkdir()
    assert [watched.look(), watched.look()] == [0, 0]
    assert len(watched.names("in")) == 5


def test_what_cannot_be_answered_is_set_apart_with_the_reason(watched: Watched) -> None:
    watched.look()
    watched.put("no.csv", "a,b\n1,2\n")
    watched.put("all.csv", HEADER + "x,99,4,UA\n")
    watched.put("what.xlsx", "PK")
    watched.put("some.csv", rows(3) + "y,99,4,UA\n")
    watched.look(0)
    watched.look()
    assert watched.names("failed") == [
        "all.csv", "all.csv.reason.txt", "all.rejected.jsonl", "no.csv", "no.csv.reason.txt",
        "what.xlsx", "what.xlsx.reason.txt",
    ]  # fmt: skip
    assert "none of the columns a, b" in (watched.room / "failed" / "no.csv.reason.txt").read_text()
    assert "none of its 1 rows" in (watched.room / "failed" / "all.csv.reason.txt").read_text()
    assert watched.names("out") == ["some.csv", "some.rejected.jsonl"]
    (refused,) = (watched.room / "out" / "some.rejected.jsonl").read_text().splitlines()
    assert json.loads(refused)["row"]["id"] == "y"
    assert watched.names(".work") == []


def test_the_same_name_again_never_replaces_an_answer_that_was_not_fetched(watched: Watched) -> None:
    watched.look()
    for tag in ("a", "b"):
        watched.put("day.csv", rows(2, tag))
        watched.look(0)
        watched.look()
    assert (watched.answered("day.csv"), watched.answered("day-2.csv")) == (["a0", "a1"], ["b0", "b1"])


def test_an_answer_that_a_kill_kept_from_out_is_handed_out_and_not_made_again(
    watched: Watched, worker: ServingWorker
) -> None:
    watched.look()
    before = len(worker.captured())
    (watched.room / ".work" / "a.csv.result").write_text("whole")
    (watched.room / ".work" / "a.csv.rejected.jsonl").write_text("{}")
    (watched.room / ".work" / "b.csv").write_text(rows(2))
    (watched.room / ".work" / "b.csv.result").write_text("whole too")
    watched.look()
    assert watched.names("out") == ["a.csv", "a.rejected.jsonl", "b.csv"]
    assert watched.names(".work") == []
    assert len(worker.captured()) == before


def test_stopping_in_a_file_leaves_it_to_the_next_life(watched: Watched, worker: ServingWorker, tmp_path: Path) -> None:
    watched.look()
    watched.put("a.csv", rows(40))
    watched.look(0)
    watched.stop.set()
    with pytest.raises(StopError):
        watched.look()
    assert watched.names("out") == []
    again = Watched(worker, tmp_path / "batch")
    assert again.look() == 1
    again.connection.close()
    assert again.answered("a.csv") == [f"r{i}" for i in range(40)]


def test_files_that_are_done_are_deleted_after_their_days(watched: Watched) -> None:
    watched.look()
    for name, days in (("old.csv", 15), ("new.csv", 13)):
        (watched.room / "done" / name).write_text("")
        at = (NOW - timedelta(days=days)).timestamp()
        utime(watched.room / "done" / name, (at, at))
    watched.look()
    assert watched.names("done") == ["new.csv"]


def test_without_a_server_nothing_is_touched(watched: Watched) -> None:
    watched.put("a.csv", rows(1))
    alone = Inbox(watched.options, Connection(Server("127.0.0.1", 9)), now=lambda: NOW)
    with pytest.raises(UnreachableError):
        alone.look(0, Stop())
    assert watched.names("in") == ["a.csv"]


def test_kills_at_any_moment_lose_and_double_no_row(worker: ServingWorker, tmp_path: Path) -> None:
    """Real processes, killed at random; then every row stands in exactly one output, and was captured."""
    folder = tmp_path / "batch"
    options = InboxOptions(server=Server(*worker.address), folder=str(folder), poll_s=0.01, settle_s=0, rows=4)
    expected = []
    for number in range(4):
        (folder / "delay" / "in").mkdir(parents=True, exist_ok=True)
        (folder / "delay" / "in" / f"f{number}.csv").write_text(rows(80, f"k{number}-"))
        expected += [f"k{number}-{i}" for i in range(80)]
    chance = random.Random(4)
    out = folder / "delay" / "out"
    for life in range(20):
        command = [sys.executable, "-m", "landreeve_agent.doors.inbox", "--parent", str(getpid())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as door:
            assert door.stdin is not None
            door.stdin.write(msgspec.json.encode(options) + b"\n")
            door.stdin.flush()
            # The first lives end inside a file, wherever that is; the later ones get far enough to finish.
            _wait_for_work(folder / "delay" / ".work", out, 4)
            time.sleep(chance.uniform(0, 0.06) * (1 + life))
            door.kill()
        if out.exists() and len(list(out.iterdir())) == 4 and not list((folder / "delay" / ".work").iterdir()):
            break
    answered = []
    for path in out.iterdir():
        with path.open(newline="") as file:
            answered += [row["id"] for row in csv.DictReader(file)]
    assert sorted(answered) == sorted(expected)
    assert {line.id for line in worker.captured()} >= set(expected)


def _wait_for_work(work: Path, out: Path, files: int) -> None:
    """Until the door has begun something or there is nothing left to do."""
    deadline = time.monotonic() + 10
    before = _state(work)
    while time.monotonic() < deadline and _state(work) == before:
        if out.exists() and len(list(out.iterdir())) == files:
            return
        time.sleep(0.002)


def _state(work: Path) -> list[tuple[str, int]]:
    try:
        return sorted((path.name, path.stat().st_size) for path in work.iterdir())
    except FileNotFoundError:
        return []
