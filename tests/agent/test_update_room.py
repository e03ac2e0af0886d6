"""A disk that somebody else filled: the way back has room of its own. Needs leave to mount a small disk."""

import asyncio
import errno
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from landreeve_agent.update.probation import ProbationStats
from landreeve_agent.update.reserve import RESERVE_FILE, RESERVED_BYTES, Reserve, is_full
from landreeve_agent.update.standing import Phase

from tests.fakes.update_box import WAITING, WORSE, A, B, Box, C
from tests.fakes.update_ports import wanted


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    # More than the blob store leaves free and the reserve is.
    command = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
async def small(disk: Path) -> AsyncIterator[Box]:
    box = Box(disk)
    await box.start()
    yield box
    await box.kill()


def fill(disk: Path) -> None:
    """Every byte, as another program would."""
    with (disk / "theirs").open("wb", buffering=0) as file:
        piece = 1024 * 1024
        while piece:
            try:
                while file.write(b"\0" * piece):
                    pass
            except OSError:
                piece //= 2
    assert shutil.disk_usage(disk).free < 4096


async def on_probation(box: Box) -> None:
    await box.order(1, wanted(A, "A", "r1"))
    await box.until(Phase.COMMITTED)
    box.hub.stats[B.digest] = WAITING
    await box.order(2, wanted(B, "B", "r2"))
    await box.until(Phase.PROBATION)
    assert box.worker.serves == {"demo": ("B", "A")}
    assert (box.root / "models" / RESERVE_FILE).stat().st_size == RESERVED_BYTES


async def test_bad_version_is_left_on_a_full_disk(small: Box) -> None:
    await on_probation(small)
    fill(small.root)
    small.hub.stats[B.digest] = WORSE
    state = await small.until(Phase.ROLLED_BACK)
    assert state.good is not None
    assert state.good.version == "A"
    assert small.worker.serves == {"demo": ("A", None)}
    assert not (small.root / "models" / RESERVE_FILE).exists()
    (small.root / "theirs").unlink()  # once there is room, it is set aside again
    small.hub.stats[C.digest] = ProbationStats(rows=100, distinct=50)
    await small.order(3, wanted(C, "C", "r3"))
    await small.until(Phase.COMMITTED)
    await small.settled()
    assert (small.root / "models" / RESERVE_FILE).stat().st_size == RESERVED_BYTES


async def test_person_leaves_a_version_on_a_full_disk(small: Box) -> None:
    await on_probation(small)
    fill(small.root)
    answer = await small.runner.roll_back("demo", "ann")
    assert answer.accepted
    await small.until(Phase.ROLLED_BACK)
    assert small.worker.serves == {"demo": ("A", None)}


async def test_room_is_set_aside_only_where_it_takes_no_last_room(disk: Path) -> None:
    reserve = Reserve(disk / RESERVE_FILE)
    assert reserve.hold()
    assert reserve.hold()
    assert reserve.release()
    assert not reserve.release()
    await asyncio.to_thread(fill, disk)
    assert not reserve.hold()
    assert not reserve.file.exists()


def test_want_of_room_is_told_from_other_trouble() -> None:
    nested = RuntimeError("it failed")
    nested.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert is_full(nested)
    assert not is_full(OSError(errno.EIO, "Input/output error"))
    assert not is_full(None)
