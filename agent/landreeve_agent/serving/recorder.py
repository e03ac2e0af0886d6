"""The worker's flight recorder: which versions are in native code now, in memory that outlives the process.

The supervisor makes the memory and gives it to the worker; when the worker dies, it reads there what was under way. A
*cell* of eight bytes holds the thread of one run, 0 when it is over: one store before the run and one after it, no
lock, no system call. Beside each cell stands the name of its version. Whatever is not certain (no memory, a name that
cannot be read, more runs at once than cells) reads as nothing known, and then nobody is suspected.

The memory is sealed against shrinking and the supervisor reads it by `os.pread`: nothing a dying worker wrote there
can hurt the supervisor. Source: memfd_create(2), fcntl(2) "File Sealing".
"""

import contextlib
import fcntl
import mmap
import os
import struct
import tempfile
import threading
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Protocol, TypeVar

import msgspec

from landreeve_agent.serving.ending import NOTHING, Marks, Running

CELLS = 256
NOTED = "noted_"
_CELL = struct.Struct("=Q")
_CELL_BYTES = _CELL.size
_NAME_BYTES = 512
_LENGTH_BYTES = 2
_NAMES_AT = CELLS * _CELL_BYTES
REGION_BYTES = _NAMES_AT + CELLS * _NAME_BYTES
# The first cells are no runs: whether one went on that could not be noted; the thread of the event loop, which also
# says that the worker has opened its memory; and where a run is put that cannot be noted.
_SPILT, _MAIN, _NOWHERE, _FIRST = 0, 1, 2, 3
A = TypeVar("A")
R = TypeVar("R")


def shared_memory(size: int) -> int:
    """A descriptor of new memory that only a process given it can reach; it cannot shrink. `OSError`."""
    if not hasattr(os, "memfd_create"):  # not Linux: a file without a name
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
        return descriptor
    descriptor = os.memfd_create("landreeve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


# --- the supervisor's side


class Region:
    """The memory of one worker's recorder, as the supervisor holds it."""

    def __init__(self) -> None:
        self.descriptor = shared_memory(REGION_BYTES)
        self._close = weakref.finalize(self, os.close, self.descriptor)

    def read(self) -> Marks:
        """What is under way, or was when the worker ended; nothing when that is not certain."""
        if not self._close.alive:
            return NOTHING
        try:
            return _marks(os.pread(self.descriptor, REGION_BYTES, 0))
        except (OSError, ValueError):
            return NOTHING

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self._close()


def _marks(region: bytes) -> Marks:
    """`ValueError` when it holds no marks of ours."""
    if len(region) != REGION_BYTES:
        raise ValueError(f"{len(region)} bytes instead of {REGION_BYTES}")
    cells = [thread for (thread,) in _CELL.iter_unpack(region[:_NAMES_AT])]
    if cells[_SPILT] or not cells[_MAIN]:
        return NOTHING
    running = tuple((_name(region, cell), cells[cell]) for cell in range(_FIRST, CELLS) if cells[cell])
    return Marks(running, cells[_MAIN])


def _name(region: bytes, cell: int) -> Running:
    at = _NAMES_AT + cell * _NAME_BYTES
    length = int.from_bytes(region[at : at + _LENGTH_BYTES], "little")
    # msgspec's errors are ValueErrors; an empty or a torn name is none.
    return msgspec.json.decode(region[at + _LENGTH_BYTES : at + _LENGTH_BYTES + length], type=Running)


# --- the worker's side


class Recorder:
    """Hands out cells; ``descriptor`` is that of a `Region`, or -1 where nobody reads. Any thread may call it."""

    def __init__(self, descriptor: int = -1) -> None:
        self._memory = memoryview(_mapped(descriptor))
        self._cells = self._memory[:_NAMES_AT].cast("Q")
        self._next = _FIRST
        self._free: list[int] = []  # of versions that have gone
        self._lock = threading.Lock()
        self._cells[_MAIN] = threading.main_thread().ident or 0

    @property
    def cells(self) -> memoryview:
        """One for each run under way: the thread it is in."""
        return self._cells

    def tracks(self, model: str, version: str, release: str) -> "Tracks":
        """What notes that version's runs and loads."""
        return Tracks(self, model, version, release)

    def take(self, name: bytes) -> int:
        """A cell for runs of that name (a `Running` as JSON)."""
        with self._lock:
            fits = len(name) <= _NAME_BYTES - _LENGTH_BYTES and (self._free or self._next < CELLS)
            if not fits:
                # From now on it is not known what runs: whom to suspect would be chance.
                self._cells[_SPILT] = 1
                return _NOWHERE
            cell = self._free.pop() if self._free else self._next
            self._next = max(self._next, cell + 1)
            at = _NAMES_AT + cell * _NAME_BYTES
            self._memory[at : at + _LENGTH_BYTES + len(name)] = len(name).to_bytes(_LENGTH_BYTES, "little") + name
            return cell

    def leave(self, cells: list[int]) -> None:
        """Those cells may get another name; a run that is still under way keeps its own."""
        with self._lock, contextlib.suppress(IndexError):
            while True:
                self._free.append(cells.pop())


class Noted(Protocol):
    """``call(argument)``, noted while it goes on. As many threads as like may be in it at once."""

    def __call__(self, call: Callable[[A], R], argument: A) -> R: ...


def _noted(recorder: Recorder, running: Running, free: list[int]) -> Noted:
    """A closure and no object: it costs 0.13 µs of a run instead of 0.22. Its code bears the mark of what it notes, so
    that the stack of a thread that dies in it, as faulthandler writes it, names the run."""
    name, cells, take = msgspec.json.encode(running), recorder.cells, recorder.take
    pop, append = free.pop, free.append  # each is one step of the interpreter, under any threads

    def noted(call: Callable[[A], R], argument: A) -> R:
        try:
            cell = pop()
        except IndexError:
            cell = take(name)
        cells[cell] = get_ident()
        try:
            return call(argument)
        finally:
            cells[cell] = 0
            append(cell)

    noted.__code__ = noted.__code__.replace(co_name=f"{NOTED}{running.mark}")
    return noted


class Tracks:
    """What notes one version's ``runs`` and ``loads``."""

    def __init__(self, recorder: Recorder, model: str, version: str, release: str) -> None:
        self._recorder = recorder
        self._free: tuple[list[int], list[int]] = ([], [])
        self.runs = _noted(recorder, Running(model, version, release), self._free[0])
        self.loads = _noted(recorder, Running(model, version, release, loading=True), self._free[1])

    def close(self) -> None:
        """The version has gone: no run of it is under way."""
        for cells in self._free:
            self._recorder.leave(cells)


def untracked(call: Callable[[A], R], argument: A) -> R:
    """``call(argument)``, for what runs in a process of its own and cannot end this one."""
    return call(argument)


def _mapped(descriptor: int) -> "mmap.mmap | bytearray":
    """The region, or memory that nobody reads: a worker without its recorder serves as well."""
    with contextlib.suppress(OSError, ValueError):
        if descriptor >= 0:
            return mmap.mmap(descriptor, REGION_BYTES)
    return bytearray(REGION_BYTES)
