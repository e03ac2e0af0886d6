"""The spool: whole lines or none, names that only grow, readable by the supervisor's own reader."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from landreeve_agent.intake.line import parse_lines
from landreeve_agent.serving.capture import Line, Spool, SpoolError


def line(name: str) -> bytes:
    row: dict[str, str | float | None] = {"hour": 9.5, "carrier": "UA", "rain": None}
    made = Line(id=name, at=None, model="delay", version="1", release="r", row=row, p=0.5, us=20, t=1.5)
    return msgspec.json.encode(made) + b"\n"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def test_the_supervisors_reader_understands_every_line(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    spool.append(line("a") + line("b"))
    spool.close()
    data = files(tmp_path)[0].read_bytes()
    chunk = parse_lines(data, 0, closed=True)
    assert [(x.id, x.p, x.row["carrier"]) for x in chunk.lines] == [("a", 0.5, "UA"), ("b", 0.5, "UA")]
    assert (chunk.bad, chunk.end) == (0, len(data))


def test_a_full_file_is_followed_by_the_next_number(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 5, rotate_bytes=len(line("a")))
    for name in "abc":
        spool.append(line(name))
    spool.close()
    assert [p.name[-12:] for p in files(tmp_path)] == [f"{n:06d}.jsonl" for n in range(4)]
    assert [p.read_bytes() for p in files(tmp_path)] == [line("a"), line("b"), line("c"), b""]


def test_a_clock_that_went_back_gives_no_older_name(tmp_path: Path) -> None:
    Spool(tmp_path, 1_700_000_000_000_000_000).close()
    Spool(tmp_path, 5).close()
    names = [p.name for p in files(tmp_path)]
    assert [int(name.split("-")[0]) for name in names] == [1_700_000_000_000_000_000, 1_700_000_000_000_000_001]


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from landreeve_agent.serving.capture import Spool, SpoolError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]), 1)
spool.append(b"first\\n")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        spool.append(b"second\\n")
    except SpoolError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(b"third\\n")
"""


def test_a_write_that_does_not_fit_leaves_nothing_of_itself(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert files(tmp_path)[0].read_bytes() == b"first\nthird\n"
    assert "only 4 of 7 bytes fit" in done.stdout


def test_lines_survive_the_death_of_their_writer(tmp_path: Path) -> None:
    code = "import os,sys,signal;from pathlib import Path;from landreeve_agent.serving.capture import Spool;"
    code += "s=Spool(Path(sys.argv[1]),1);s.append(b'kept\\n');os.kill(os.getpid(),signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert files(tmp_path)[0].read_bytes() == b"kept\n"


def test_a_lost_folder_is_an_error_that_says_where(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1)
    spool.close()
    with pytest.raises(SpoolError, match=os.strerror(errno.EBADF)):
        spool.append(b"x\n")
