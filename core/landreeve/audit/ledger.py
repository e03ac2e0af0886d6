"""Writing, sealing, proving and checking a log, over a `Shelf`. Appending and sealing cost O(log n)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from landreeve.audit import merkle, personal
from landreeve.audit.entry import GENESIS, Act, Entry, Tampered, Verified, fault_of, made
from landreeve.audit.note import (
    BadNoteError,
    Checkpoint,
    Key,
    is_valid,
    parse_checkpoint,
    parse_key,
    parse_line,
    parse_note,
    signed_by,
)
from landreeve.audit.shelf import Shelf

ERASED = "(erased)"
T = TypeVar("T", Act, Entry)
Draw = Callable[[int], bytes]


def append(shelf: Shelf, at: str, act: Act, draw: Draw) -> Entry:
    """Write an act down within the caller's transaction; ``draw(n)`` gives n random bytes."""
    seq, prev = shelf.last()
    seq, prev = seq + 1, prev or GENESIS
    boxes: list[tuple[str, personal.Sealed]] = []
    for member, name in sorted(act.personal.items()):
        act, box = _committed(shelf, at, act, (seq, member, name), draw)
        boxes.append(box)
    entry = made(seq, at, act, prev)
    try:
        nodes = merkle.grown(shelf, seq - 1, bytes.fromhex(entry.hash))
    except LookupError:
        nodes = []  # rows were taken away: what happens now is written down all the same, and sealing tells
    shelf.add(entry)
    shelf.add_nodes(nodes)
    for subject, sealed in boxes:
        shelf.add_private(seq, sealed.member, subject, sealed.box)
    return entry


def _committed(
    shelf: Shelf, at: str, act: Act, place: tuple[int, str, str], draw: Draw
) -> tuple[Act, tuple[str, personal.Sealed]]:
    seq, member, name = place
    value = member_of(act, member)
    subject = shelf.subject(name)
    if subject is None or subject.key is None:
        fresh, key = draw(8).hex(), draw(personal.KEY_BYTES)
        shelf.add_subject(fresh, name, key, at)
    else:
        fresh, key = subject.id, subject.key
    drawn = personal.Draw(draw(personal.SALT_BYTES), draw(personal.NONCE_BYTES))
    sealed = personal.seal(key, drawn, seq, member, value)
    return _replaced(act, member, personal.commitment(drawn.salt, member, value)), (fresh, sealed)


def member_of(act: Act | Entry, member: str) -> Any:
    outer, _, inner = member.partition(".")
    return act.data[inner] if outer == "data" else getattr(act, outer)


def _replaced(act: T, member: str, value: Any) -> T:
    outer, _, inner = member.partition(".")
    changed = {**act.data, inner: value} if outer == "data" else value
    return msgspec.structs.replace(act, **{outer: changed})


def revealed(shelf: Shelf, entries: Sequence[Entry]) -> list[Entry]:
    """The entries with what is personal in them readable, or `ERASED`; for showing, not for hashing."""
    if not entries:
        return []
    subjects, shown = shelf.subjects(), {entry.seq: entry for entry in entries}
    for first, last in runs(sorted(shown)):
        for seq, member, subject, box in shelf.private(first, last):
            key = subjects[subject].key if subject in subjects else None
            shown[seq] = _replaced(shown[seq], member, _opened(key, shown[seq], member, box))
    return [shown[entry.seq] for entry in entries]


def runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each unbroken run of ascending numbers.

    >>> list(runs([1, 2, 3, 7, 9, 10]))
    [(1, 3), (7, 7), (9, 10)]
    """
    first = 0
    for at, number in enumerate(numbers):
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            yield numbers[first], number
            first = at + 1


def _opened(key: bytes | None, entry: Entry, member: str, box: bytes) -> Any:
    if key is None:
        return ERASED
    try:
        return personal.unseal(key, entry.seq, member, box, str(member_of(entry, member)))
    except ValueError as error:
        return f"({error})"


def head(shelf: Shelf, origin: str) -> Checkpoint:
    """The log as it stands."""
    size, _ = shelf.last()
    return Checkpoint(origin, size, merkle.root(shelf, size))


def growth(shelf: Shelf, since: Checkpoint | None) -> Tampered | None:
    """What is wrong with the log since that checkpoint; entries before it are compared by the tree alone, so this
    costs O(new + log n)."""
    size, _ = shelf.last()
    start = since.size if since else 0
    if size < start:
        return Tampered(size + 1, f"{start - size} of {start} entries are gone from the end of the log.")
    try:
        return _growth(shelf, since, size)
    except LookupError:
        return Tampered(start, f"parts of the {size} entries, or of the tree kept beside them, are gone.")


def _growth(shelf: Shelf, since: Checkpoint | None, size: int) -> Tampered | None:
    start = since.size if since else 0
    before = shelf.node(0, start - 1).hex() if start else GENESIS
    walk = merkle.Frontier(start, merkle.edge(shelf, start))
    if since and walk.root() != since.root:
        return Tampered(1, f"the first {start} entries were rewritten after their checkpoint.")
    number = start
    for entry in shelf.entries(start + 1):
        number += 1
        if fault := fault_of(entry, number, before):
            return fault
        before = entry.hash
        walk.append(bytes.fromhex(entry.hash))
    if number != size or merkle.root(shelf, size) != walk.root():
        return Tampered(number, "the kept tree does not fit the entries.")
    return None


class Walk:
    """Reads a whole log once, in order, and compares it with checkpoints on the way. Constant memory."""

    def __init__(self, checkpoints: Sequence[Checkpoint]) -> None:
        self._roots: dict[int, set[bytes]] = {}
        for checkpoint in checkpoints:
            self._roots.setdefault(checkpoint.size, set()).add(checkpoint.root)
        self._tree = merkle.Frontier()
        self._before = GENESIS
        self._largest = max(self._roots, default=0)

    @property
    def size(self) -> int:
        return self._tree.size

    def take(self, entry: Entry) -> Tampered | None:
        """The next entry."""
        number = self._tree.size + 1
        if fault := fault_of(entry, number, self._before):
            return fault
        self._before = entry.hash
        self._tree.append(bytes.fromhex(entry.hash))
        if any(root != self._tree.root() for root in self._roots.get(number, ())):
            return Tampered(number, f"the first {number} entries were rewritten after the checkpoint of that size.")
        return None

    def end(self) -> Tampered | None:
        """After the last entry."""
        missing = self._largest - self.size
        if missing > 0:
            sentence = f"{missing} of {self._largest} entries are gone from the end of the log."
            return Tampered(self.size + 1, sentence)
        return None

    def root(self) -> bytes:
        return self._tree.root()


def verify(shelf: Shelf, newest: Checkpoint | None, key: Key) -> Verified | Tampered:
    """Read everything: entries, chain, numbering, every checkpoint with its signature and cosignatures, the kept tree.

    ``newest`` is the checkpoint kept outside the tables."""
    checkpoints: list[Checkpoint] = [newest] if newest else []
    for size, text in shelf.notes():
        fault = _note_fault(shelf, size, text, key)
        if fault:
            return fault
        checkpoints.append(parse_checkpoint(parse_note(text).text))
    walk = Walk(checkpoints)
    for entry in shelf.entries():
        if fault := walk.take(entry):
            return fault
    if fault := walk.end():
        return fault
    try:
        kept = merkle.root(shelf, walk.size)
    except LookupError:
        kept = b""
    if kept != walk.root():
        return Tampered(walk.size, "the kept tree does not fit the entries; proofs made from it would not hold.")
    size = max((one.size for one in checkpoints), default=0)
    return Verified(walk.size, size, walk.root().hex(), shelf.witnesses(size))


def _note_fault(shelf: Shelf, size: int, text: str, key: Key) -> Tampered | None:
    try:
        note = parse_note(text)
        right = parse_checkpoint(note.text).size == size and signed_by(note, key)
        bad = [found.witness for found in shelf.cosigned(size) if not _holds(note.text, found.line, found.key)]
    except BadNoteError as error:
        return Tampered(size, f"the checkpoint of {size} entries: {error}")
    if not right:
        return Tampered(size, f"the checkpoint of {size} entries does not carry this log's signature.")
    return Tampered(size, f"the cosignature of {bad[0]} under {size} entries does not hold.") if bad else None


def _holds(text: str, line: str, key: str) -> bool:
    return is_valid(text, parse_line(line), parse_key(key))
