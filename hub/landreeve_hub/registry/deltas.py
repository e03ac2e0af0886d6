"""Deltas between blobs: made when a device first asks, kept in a bounded cache, offered to whoever holds the base.

Every method is tried and the smallest ships; where none is smaller than the blob itself, the blob does. The work is
done by one thread at low priority: zstd lets go of the interpreter, and the format bounds the memory.
"""

import contextlib
import hashlib
import logging
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec
from landreeve.blobs.codec import Codec
from landreeve.blobs.delta import Method, Named, encode
from landreeve.blobs.durable import write_durably
from landreeve.blobs.errors import BlobError
from landreeve.blobs.store import BlobStore
from landreeve.wire.codec import BLOCK_BYTES
from landreeve.wire.ids import check_digest
from landreeve.wire.transfers import MOST_BASES, WORDS, Offer

from landreeve_hub.registry import word_delta

log = logging.getLogger(__name__)
NO_BASE = "none"
# Below this share of the whole the other methods could only gain what one block carries.
GOOD_ENOUGH = 0.01
# The least that a file takes of a disk.
ENTRY_BYTES = 4096
_NICENESS = 10
_WAITING = 256


Key = tuple[str, str, str]
"""Target, base, kind."""


class Entry(msgspec.Struct, frozen=True):
    """What is known of one way from base to target; ``delta`` is empty when the whole is smallest. ``kind`` is `WORDS`
    when it may be of a method that only devices that say so can read."""

    target: str
    base: str
    delta: str
    bytes: int
    method: str
    blocks: tuple[str, ...]
    kind: str = ""

    @property
    def key(self) -> "Key":
        return self.target, self.base, self.kind


class DeltaCache:
    """Deltas on disk, the least used removed beyond ``max_bytes``.

    An entry's file is written after its blob, and names what belongs to it: whatever a crash leaves is either whole
    or removed at the next start.
    """

    def __init__(self, root: Path, max_bytes: int, codec: Codec | None = None) -> None:
        self._index = root / "index"
        self._index.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.store = BlobStore(root, codec=codec)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: dict[Key, Entry] = {}
        self._recover()

    def find(self, target: str, base: str, kind: str = "") -> Entry | None:
        """The entry, which counts as used now; None when this way was never tried."""
        with self._lock:
            entry = self._entries.pop((target, base, kind), None)
            if entry is not None:
                self._entries[entry.key] = entry
                self._file(entry).touch()
            return entry

    def target_of(self, delta: str) -> str | None:
        """What the delta leads to; None when it is none of ours."""
        with self._lock:
            return next((entry.target for entry in self._entries.values() if entry.delta == delta), None)

    def keep(self, entry: Entry, data: BinaryIO | None) -> None:
        """Keep an entry with its delta; others make room for it. `BlobError` when there is none."""
        if data is not None:
            partial = self.store.begin(entry.delta, entry.bytes, entry.blocks)
            for index in sorted(partial.missing()):
                data.seek(index * BLOCK_BYTES)
                partial.write(index, data.read(BLOCK_BYTES))
            partial.complete()
        with self._lock:
            self._entries[entry.key] = entry
            write_durably(self._file(entry), msgspec.json.encode(entry))
            self._make_room()

    def leave(self, has: Callable[[str], bool]) -> int:
        """Forget the deltas to or from blobs that the hub no longer has; how many those were."""
        with self._lock:
            gone = [key for key in self._entries if not has(key[0]) or (key[1] != NO_BASE and not has(key[1]))]
            for key in gone:
                self._forget(key, self._entries[key])
        return len(gone)

    def _file(self, entry: Entry) -> Path:
        return self._index / _file_name(entry)

    def _make_room(self) -> None:
        used = sum(map(_cost, self._entries.values()))
        for key, entry in list(self._entries.items())[:-1]:
            if used <= self._max_bytes:
                return
            used -= _cost(entry)
            self._forget(key, entry)

    def _forget(self, key: Key, entry: Entry) -> None:
        del self._entries[key]
        self._file(entry).unlink(missing_ok=True)
        if entry.delta and not any(other.delta == entry.delta for other in self._entries.values()):
            self.store.remove(entry.delta)

    def _recover(self) -> None:
        """Read what is there, oldest use first, and remove what belongs together no more."""
        for path in sorted(self._index.iterdir(), key=lambda path: path.stat().st_mtime):
            entry = _read(path)
            if entry is None or (entry.delta and not self.store.has(entry.delta)):
                path.unlink(missing_ok=True)
            else:
                self._entries[entry.key] = entry
        known = {entry.delta for entry in self._entries.values()}
        for digest in (self.store.digests() | self.store.partials()) - known:
            self.store.remove(digest)
        self._make_room()


class Workshop:
    """Answers what a device could fetch instead of a whole blob, and makes what is not there yet."""

    def __init__(self, blobs: BlobStore, cache: DeltaCache) -> None:
        self.cache = cache
        self._blobs = blobs
        self._jobs: queue.Queue[Key | None] = queue.Queue(_WAITING)
        self._under_way: set[Key] = set()
        self._failed: set[Key] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="deltas", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the delta in hand, or with the process: nothing half made is ever kept."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait(None)

    def offer(self, target: str, bases: Sequence[str], kind: str = "") -> Offer:
        """The answer for a device that holds ``bases`` and reads deltas of that kind; returns at once."""
        base = self._choose(target, bases, kind)
        kind = kind if base != NO_BASE else ""
        entry = self.cache.find(target, base, kind)
        if entry is not None:
            return _offer(entry)
        key = (target, base, kind)
        if key in self._failed or not self._begin(key):
            return Offer(state="whole")
        return Offer(state="making")

    def _choose(self, target: str, bases: Sequence[str], kind: str) -> str:
        """A base that is here: one for which the delta is made already, else one as long as the target, else the
        first named."""
        held = [base for base in bases[:MOST_BASES] if base != target and self._blobs.has(check_digest(base))]
        if not held:
            return NO_BASE
        made = next((base for base in held if self.cache.find(target, base, kind)), None)
        size = self._blobs.size(target)
        return made or next((base for base in held if self._blobs.size(base) == size), held[0])

    def _begin(self, key: Key) -> bool:
        if key in self._under_way:
            return True
        try:
            self._jobs.put_nowait(key)
        except queue.Full:
            return False
        self._under_way.add(key)
        return True

    def _work(self) -> None:
        _give_way()
        while (key := self._jobs.get()) is not None and not self._stopping.is_set():
            try:
                self._make(*key)
            except (OSError, BlobError, MemoryError) as error:
                self._failed.add(key)
                log.warning("no delta for %s: %s; it is sent whole", key[0][:12], error)
            except Exception:
                self._failed.add(key)
                log.exception("no delta for %s: it is sent whole", key[0][:12])
            finally:
                self._under_way.discard(key)

    def _make(self, target: str, base: str, kind: str) -> None:
        with contextlib.ExitStack() as stack:
            wanted, *known = (
                Named(digest, stack.enter_context(contextlib.closing(self._blobs.open(digest))))
                for digest in (target, base)
                if digest != NO_BASE
            )
            best = smallest(known[0] if known else None, wanted, kind)
        if best is None:
            self.cache.keep(Entry(target, base, "", 0, "", (), kind), None)
            return
        with best.file as file:
            self.cache.keep(_entry((target, base, kind), best), file)


@dataclass(frozen=True, slots=True)
class Made:
    """A delta in a file without a name."""

    method: Method
    size: int
    file: BinaryIO


def smallest(base: Named | None, target: Named, kind: str = WORDS) -> Made | None:
    """The smallest delta by any method that devices of that kind read; None when the target itself is no larger."""
    ways: list[tuple[Method, Named | None]] = [(Method.XOR, None), (Method.WHOLE, None)]
    if base is not None:
        words = [(Method.WORDS, base)] if kind == WORDS else []
        ways = [(Method.XOR, base), *words, (Method.PATCH, base), *ways]
    best: Made | None = None
    for method, known in ways:
        if best is not None and best.size <= target.source.size * GOOD_ENOUGH:
            break
        made = _made(method, known, target)
        if best is None or made.size < best.size:
            best, made = made, best or made
        if made is not best:
            made.file.close()
    if best is not None and best.size >= target.source.size:
        best.file.close()
        return None
    return best


def _made(method: Method, base: Named | None, target: Named) -> Made:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - its owner is what this returns
    if method is Method.WORDS and base is not None:
        word_delta.write(base, target, file)
    else:
        encode(method, base, target, file)
    return Made(method, file.tell(), file)


def _entry(key: Key, made: Made) -> Entry:
    target, base, kind = key
    made.file.seek(0)
    whole, blocks = hashlib.sha256(), []
    while data := made.file.read(BLOCK_BYTES):
        whole.update(data)
        blocks.append(hashlib.sha256(data).hexdigest())
    return Entry(target, base, whole.hexdigest(), made.size, made.method.value, tuple(blocks), kind)


def _offer(entry: Entry) -> Offer:
    if not entry.delta:
        return Offer(state="whole")
    base = "" if entry.base == NO_BASE else entry.base
    return Offer(
        state="delta", delta=entry.delta, bytes=entry.bytes, blocks=entry.blocks, base=base, method=entry.method
    )


def _cost(entry: Entry) -> int:
    """What an entry takes of the disk; also one that only says that nothing is gained."""
    return entry.bytes + ENTRY_BYTES + sum(map(len, entry.blocks))


def _read(path: Path) -> Entry | None:
    try:
        entry = msgspec.json.decode(path.read_bytes(), type=Entry)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return entry if path.name == _file_name(entry) else None


def _file_name(entry: Entry) -> str:
    return f"{'-'.join(part for part in entry.key if part)}.json"


def _give_way() -> None:
    """This thread after all others: encoding may wait, the fleet may not. Linux counts niceness by thread."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    except (OSError, AttributeError):
        log.debug("deltas are made at the usual priority here")
