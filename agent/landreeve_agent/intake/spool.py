"""The capture spool: the worker appends, the supervisor reads each line exactly once.

Where reading stands, ``(file, offset)``, is stored in the transaction that stores what was read: after a kill
at any moment either both are there or neither.
"""

import asyncio
import contextlib
import fcntl
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlite_utils import Database as Tables

from landreeve_agent.intake.capture import Captured, Tally, store_lines
from landreeve_agent.intake.line import Chunk, parse_lines
from landreeve_agent.store.database import Database

CHUNK_BYTES = 1024 * 1024
# A worker that lost its supervisor finishes the requests it holds; until then its file is not deleted.
GRACE_S = 60.0
_NAME = re.compile(r"(\d+)-(\d+)\.jsonl")


@dataclass(frozen=True)
class Drained:
    """What one look into the spool brought."""

    captured: tuple[Captured, ...] = ()
    lines: int = 0
    repeats: int = 0
    bad: int = 0
    more: bool = False


@dataclass
class Spool:
    """The reader. ``on_captured`` hears of every committed batch (for the live chart)."""

    database: Database
    folder: Path
    on_captured: Callable[[tuple[Captured, ...]], None] = field(default=lambda _: None)
    unseal: Callable[[str, bytes], bytes | None] | None = None

    async def drain(self, now: datetime) -> Drained:
        """Read what is new, up to 1 MiB a file, and delete files that are read and no longer written."""
        paths = await asyncio.to_thread(spool_files, self.folder)
        total = Drained()
        for path in paths:
            total = _sum(total, await self._read(path, closed=path != paths[-1], now=now))
        await self._sweep(paths[:-1], now)
        return total

    async def drain_all(self, now: datetime) -> int:
        """Read until nothing is left; the number of lines read."""
        lines = 0
        while True:
            drained = await self.drain(now)
            lines += drained.lines
            if not drained.more:
                return lines

    async def _read(self, path: Path, *, closed: bool, now: datetime) -> Drained:
        offset = await self.database.read(partial(_offset, name=path.name))
        # The size is taken before the bytes: a file that was closed before this look does not grow after it.
        chunk, size = await asyncio.to_thread(_load, path, offset, closed and _is_old(path, now), self.unseal)
        if chunk is None or chunk.end == offset:
            return Drained()
        captured, tally = await self.database.write(lambda tables: _commit(tables, path.name, offset, chunk))
        self.on_captured(captured)
        return Drained(captured, len(chunk.lines), tally.repeats, chunk.bad, chunk.end < size)

    async def _sweep(self, paths: Iterable[Path], now: datetime) -> None:
        for path in paths:
            offset = await self.database.read(partial(_offset, name=path.name))
            if await asyncio.to_thread(_delete_if_read, path, offset, now):
                # File first, row second: the other order would read the file again after a crash in between.
                await self.database.write(partial(_forget, name=path.name))


def spool_files(folder: Path) -> list[Path]:
    """The spool's files, oldest first; other files are left alone."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda pair: (int(pair[0][1]), int(pair[0][2])))]


def _load(
    path: Path, offset: int, closed: bool, unseal: Callable[[str, bytes], bytes | None] | None
) -> tuple[Chunk | None, int]:
    opened = partial(unseal, path.name) if unseal else None
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(offset)
        data = file.read(CHUNK_BYTES)
        while b"\n" not in data and offset + len(data) < size:
            data += file.read(CHUNK_BYTES)  # a single line longer than a chunk
        return parse_lines(data, offset, closed=closed and offset + len(data) >= size, unseal=opened), size
    return None, 0


def _commit(tables: Tables, name: str, offset: int, chunk: Chunk) -> tuple[tuple[Captured, ...], Tally]:
    if _offset(tables, name) != offset:
        raise RuntimeError(f"spool {name}: two readers at once")
    captured, tally = store_lines(tables, chunk.lines, chunk.bad)
    tables.conn.execute(
        "INSERT INTO spool (file, offset, done) VALUES (?, ?, 0) "
        "ON CONFLICT (file) DO UPDATE SET offset = excluded.offset",
        (name, chunk.end),
    )
    return captured, tally


def _offset(tables: Tables, name: str) -> int:
    row = tables.conn.execute("SELECT offset FROM spool WHERE file = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _forget(tables: Tables, name: str) -> None:
    tables.conn.execute("DELETE FROM spool WHERE file = ?", (name,))


def _is_old(path: Path, now: datetime) -> bool:
    try:
        return now.timestamp() - path.stat().st_mtime > GRACE_S
    except FileNotFoundError:
        return False


def _is_held(path: Path) -> bool:
    """Whether a worker that is being replaced may still write to it, however long ago it last did."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _delete_if_read(path: Path, offset: int, now: datetime) -> bool:
    try:
        status = path.stat()
        if offset < status.st_size or now.timestamp() - status.st_mtime <= GRACE_S or _is_held(path):
            return False
        path.unlink()
    except FileNotFoundError:
        return True
    return True


def _sum(a: Drained, b: Drained) -> Drained:
    return Drained(a.captured + b.captured, a.lines + b.lines, a.repeats + b.repeats, a.bad + b.bad, a.more or b.more)
