"""Sealing one's own log, and witnessing others': what agent and hub do alike with their tables and keys."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from landreeve.audit import ledger, merkle, note, witness
from landreeve.audit.entry import Tampered
from landreeve.audit.note import BadNoteError, Checkpoint, Note
from landreeve.audit.shelf import Shelf, Watched
from landreeve.audit.witness import Ask, Grown, Offered, Refused, Seen
from landreeve.blobs.durable import write_durably

if TYPE_CHECKING:
    from landreeve.audit.keys import LogKeys

Legacy = Callable[[bytes], Checkpoint]


class Sealer:
    """Signs a log's checkpoints. The newest also lies in a file beside the keys, outside the database, so that who can
    write the tables alone cannot hide that it was there."""

    def __init__(self, keys: "LogKeys", path: Path, legacy: Legacy | None = None) -> None:
        self.keys = keys
        self._path = path
        self._legacy = legacy

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint of the file; `BadNoteError` when its signature is not this log's."""
        if not self._path.exists():
            return None
        data = self._path.read_bytes()
        if self._legacy and data.startswith(b"{"):
            return self._legacy(data)
        found = note.parse_note(data.decode("utf-8", "replace"))
        if not note.signed_by(found, self.keys.key):
            raise BadNoteError(f"the checkpoint {self._path.name} does not carry this log's signature.")
        return note.parse_checkpoint(found.text)

    def seal(self, shelf: Shelf, newest: Checkpoint | None, at: str) -> str | Tampered:
        """The note of the log as it stands, kept in its tables; what keeps it from being signed instead. Call it in a
        write, and `keep` what it answers once that is committed."""
        kept = self._kept(shelf)
        if kept and (newest is None or kept.size > newest.size):
            newest = kept  # a kill came between the commit and the file
        size, _ = shelf.last()
        if newest and newest == kept and newest.size == size:
            return shelf.newest()
        if fault := ledger.growth(shelf, newest):
            return fault
        if size == 0:
            return ""
        text = ledger.head(shelf, self.keys.origin).text()
        whole = Note(text, (note.sign(text, self.keys.origin, self.keys.log),)).whole()
        shelf.add_note(size, at, whole)
        return whole

    def keep(self, whole: str) -> None:
        """Put the note beside the keys."""
        if whole:
            write_durably(self._path, whole.encode(), 0o600)

    def _kept(self, shelf: Shelf) -> Checkpoint | None:
        found = shelf.newest()
        if not found:
            return None
        parsed = note.parse_note(found)
        return note.parse_checkpoint(parsed.text) if note.signed_by(parsed, self.keys.key) else None


class Evidence(msgspec.Struct, frozen=True):
    """Why a log was refused: both notes carry its own signature."""

    cause: str
    sentence: str
    seen: str
    offered: str


@dataclass(frozen=True)
class Verdict:
    """What became of an offered checkpoint. ``line`` is this side's cosignature; ``is_news`` that a refusal is the
    first of its kind."""

    judged: Grown | Ask | Refused
    line: str = ""
    is_news: bool = False


class Watching:
    """A witness of other logs, each known by a name of this side's own choosing (a device, ``hub``)."""

    def __init__(self, keys: "LogKeys") -> None:
        self._keys = keys

    def judge(
        self, shelf: Shelf, log: str, offered: Offered, now: datetime, *, mark: tuple[int, int] = (0, 0)
    ) -> Verdict | None:
        """Judge and remember, within a write; None for what is older than what was judged before (``mark`` orders what
        one log sends, since facts of a device may arrive out of order)."""
        at, unix_s = f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}", int(now.timestamp())
        row = shelf.watched(log)
        if row and mark != (0, 0) and mark <= (row.epoch, row.seq):
            return None
        judged = witness.judge(Seen(row.key, row.note) if row and row.note else None, offered)
        match judged:
            case Grown(seen):
                text = note.parse_note(offered.note).text
                shelf.keep_watched(Watched(log, seen.key, seen.note, at, *mark))
                line = note.cosign(text, self._keys.origin, self._keys.witness, unix_s).line()
                return Verdict(judged, line)
            case Refused(cause, sentence, old, new):
                found = msgspec.json.encode(Evidence(cause, sentence, old, new)).decode()
                is_news = row is None or row.refused != cause
                shelf.keep_refused(log, at, mark, cause, found if is_news or row is None else row.evidence)
                return Verdict(judged, is_news=is_news)
            case _:
                return Verdict(judged)

    def cosigned(self, shelf: Shelf, log: str, whole: str, now: datetime) -> str:
        """This side's line under that very note of the log, when it is the one that was believed; else empty."""
        row = shelf.watched(log)
        if row is None or row.note != whole or row.refused:
            return ""
        text, unix_s = note.parse_note(whole).text, int(now.timestamp())
        return note.cosign(text, self._keys.origin, self._keys.witness, unix_s).line()


def offer(shelf: Shelf, key: str, old: int) -> Offered | None:
    """The newest checkpoint of a log, with the proof that it grew from one of ``old`` entries; None before the first.

    An ``old`` that is more than there is cannot be proven: the witness sees from the size alone what that means."""
    whole = shelf.newest()
    if not whole:
        return None
    checkpoint = note.parse_checkpoint(note.parse_note(whole).text)
    proof = merkle.consistency_proof(shelf, old, checkpoint.size) if 0 < old <= checkpoint.size else []
    return Offered(key, whole, old, proof)
