"""Files of rows through a real worker: nothing lost, nothing twice, every refusal with its line and reason."""

import csv
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from landreeve_agent.doors.asking import Patience
from landreeve_agent.doors.batch import Job, Progress, Told, run_job
from landreeve_agent.doors.connection import Connection, Server
from landreeve_agent.doors.errors import BadFileError, BadModelError, ChangedError, UnreachableError
from landreeve_agent.doors.part import Part

from tests.agent.serving_worker import ServingWorker, serving_worker

HEADER = "id,at,hour,wind,rain,carrier,note\n"


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingWorker]:
    with serving_worker(tmp_path_factory.mktemp("worker")) as made:
        made.serve()
        yield made


def rows(n: int, first: int = 0) -> str:
    return "".join(
        f"r{i},2026-01-31T09:30:00Z,{i % 24}.5,4,{'' if i % 2 else 0.1},UA,café {i}\n" for i in range(first, first + n)
    )


def do(
    worker: ServingWorker,
    source: Path,
    *,
    size: int = 16,
    form: str = "csv",
    model: str = "delay",
    told: Told | None = None,
) -> Progress:
    job = Job(model, source, source.with_name(f"out{source.suffix}"), form, rows=size)
    with Connection(Server(*worker.address)) as connection:
        return run_job(job, connection, Patience(0.5), told or (lambda _: None))


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_row_is_answered_with_its_own_id_and_time(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(HEADER + rows(40))
    before = len(worker.captured())
    assert do(worker, source).answered == 40
    out = table(tmp_path / "out.csv")
    assert [row["id"] for row in out] == [f"r{i}" for i in range(40)]
    assert all(0 < float(row["probability"]) < 1 and row["model_version"] == "1.0.0" for row in out)
    assert out[3]["note"] == "café 3"
    lines = worker.captured()[before:]
    assert [line.id for line in lines] == [f"r{i}" for i in range(40)]
    assert {line.at for line in lines} == {"2026-01-31T09:30:00Z"}
    assert [line.p for line in lines] == pytest.approx([float(row["probability"]) for row in out])
    assert names(tmp_path) == ["in.csv", "out.csv"]


def test_rows_that_cannot_be_answered_are_listed_and_cost_no_other_row(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    bad = [
        "x1,2026-01-31T09:30:00Z,nine,4,,UA,text\n",
        "x2,2026-01-31T09:30:00Z,99,4,,UA,too high\n",
        "x3,yesterday,9,4,,UA,no time\n",
        "x4,2026-01-31T09:30:00Z,9,4\n",
        "x5,2026-01-31T09:30:00Z,9,inf,,UA,\n",
        "x6,2026-01-31T09:30:00Z,9,4,,,no carrier\n",
    ]
    lines = rows(20).splitlines(keepends=True)
    for index, line in enumerate(bad):
        lines.insert(3 * index, line)
    source.write_text(HEADER + "".join(lines))
    done = do(worker, source)
    assert (done.answered, done.rejected) == (20, 6)
    assert [row["id"] for row in table(tmp_path / "out.csv")] == [f"r{i}" for i in range(20)]
    refused = [json.loads(line) for line in (tmp_path / "out.rejected.jsonl").read_text().splitlines()]
    assert [one["line"] for one in refused] == [2, 5, 8, 11, 14, 17]
    words = ["'nine' is no number", "above", "RFC 3339", "4 cells", "no finite number", "required"]
    assert [word in one["reason"] for word, one in zip(words, refused, strict=True)] == [True] * 6, refused
    assert refused[1]["row"]["note"] == "too high"
    assert done.first_reason.startswith("line 2: hour")


def test_rows_without_ids_get_ids_that_stay_the_same(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"hour": i, "wind": 1, "carrier": "AA"}) + "\n" for i in range(5)))
    first = do(worker, source, form="jsonl")
    once = (tmp_path / "out.jsonl").read_text()
    assert do(worker, source, form="jsonl") == first
    assert (tmp_path / "out.jsonl").read_text() == once
    ids = [json.loads(line)["id"] for line in once.splitlines()]
    assert len(set(ids)) == 5
    assert ids[0].endswith("-1")


def test_a_reading_that_was_cut_off_goes_on_where_it_stood(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(HEADER + rows(30) + "bad\n" + rows(30, 30))
    whole = do(worker, source)
    expected = (tmp_path / "out.csv").read_bytes()
    (tmp_path / "out.csv").unlink()

    class Cut(Exception):  # noqa: N818 - a power cut is no error of ours
        pass

    def cut(progress: Progress) -> None:
        if progress.answered >= 20:
            raise Cut

    with pytest.raises(Cut):
        do(worker, source, told=cut)
    assert not (tmp_path / "out.csv").exists()
    with (tmp_path / ".out.csv.part").open("ab") as torn:
        torn.write(b"r99,half a li")  # written after the last mark
    read: list[int] = []
    resumed = do(worker, source, told=lambda progress: read.append(progress.answered))
    assert resumed == whole
    assert read[0] > 20
    assert (tmp_path / "out.csv").read_bytes() == expected
    assert names(tmp_path) == ["in.csv", "out.csv", "out.rejected.jsonl"]


def test_another_input_begins_anew(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(HEADER + rows(5))
    part = Part(tmp_path / "out.csv")
    part.append(part.open("of something else"), b"rubbish", b"")
    part.close()
    assert do(worker, source).answered == 5
    assert len(table(tmp_path / "out.csv")) == 5


def test_a_finished_part_keeps_its_rows_when_only_its_last_steps_were_missing(tmp_path: Path) -> None:
    part = Part(tmp_path / "out.csv")
    mark = part.append(part.open("k"), b"whole", b"")
    part.finish(mark)
    again = Part(tmp_path / "out.csv")
    mark = again.open("k")
    assert mark.whole
    again.finish(mark)
    assert (tmp_path / "out.csv").read_bytes() == b"whole"


def test_quotes_line_breaks_and_semicolons_survive(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    text = 'hour;wind;carrier;"a\nnote"\r\n1;2;UA;"two\nlines; ""quoted"""\r\n\r\n3;4;AA;x\r\n'
    source.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert do(worker, source, size=1).answered == 2
    out = table(tmp_path / "out.csv", ";")
    assert out[0]["a\nnote"] == 'two\nlines; "quoted"'
    assert [row["id"].rpartition("-")[2] for row in out] == ["3", "6"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"a,b\n1,2\n", "none of the columns a, b"),
        (b"\xff\xfe\n", "no UTF-8"),
        (b"hour,hour\n1,2\n", "twice"),
    ],
)
def test_a_file_that_is_no_table_is_refused_as_a_whole(
    worker: ServingWorker, tmp_path: Path, data: bytes, words: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(data)
    with pytest.raises((BadFileError, BadModelError), match=words):
        do(worker, source)
    assert names(tmp_path) == ["in.csv"]


def test_bytes_that_are_no_text_cost_only_their_row(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b"hour,wind,carrier\n1,2,U\xff\n1,2,UA\n")
    done = do(worker, source)
    assert (done.answered, done.rejected, done.first_reason) == (1, 1, "line 2: not UTF-8")


def test_a_file_that_grows_meanwhile_gives_no_result(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(HEADER + rows(3))

    def grow(_: Progress) -> None:
        with source.open("a") as file:
            file.write(rows(1, 3))

    with pytest.raises(ChangedError):
        do(worker, source, told=grow)
    assert names(tmp_path) == ["in.csv"]


def test_an_unknown_model_is_told_at_once_and_an_absent_server_after_a_while(
    worker: ServingWorker, tmp_path: Path
) -> None:
    source = tmp_path / "in.csv"
    source.write_text(HEADER + rows(1))
    with pytest.raises(BadModelError, match="there are: delay"):
        do(worker, source, model="price")
    waited: list[float] = []
    patience = Patience(3.0, sleep=waited.append, clock=lambda: sum(waited))
    nobody = Connection(Server("127.0.0.1", 9))
    with pytest.raises(UnreachableError, match="given up"):
        run_job(Job("delay", source, tmp_path / "o.csv"), nobody, patience, lambda _: None)
    assert sum(waited) >= 3.0


def test_a_worker_that_dies_meanwhile_costs_no_row(worker: ServingWorker, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(HEADER + rows(64))
    killed = threading.Event()

    def kill(_: Progress) -> None:
        if not killed.is_set():
            killed.set()
            os.kill(worker.call(worker.process.status()).pid, signal.SIGKILL)

    job = Job("delay", source, tmp_path / "out.csv", rows=8)
    with Connection(Server(*worker.address)) as connection:
        done = run_job(job, connection, Patience(30), kill)
    assert done.answered == 64
    assert [row["id"] for row in table(tmp_path / "out.csv")] == [f"r{i}" for i in range(64)]
