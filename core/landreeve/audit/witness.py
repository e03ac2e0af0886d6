"""What a witness makes of another's checkpoint: it only ever signs a log that grew from the one it saw last. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from landreeve.audit import merkle
from landreeve.audit.note import BadNoteError, Checkpoint, Key, parse_checkpoint, parse_key, parse_note, signed_by


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest checkpoint of a log that this witness believed: whose key is pinned, and the note itself."""

    key: str
    note: str

    @property
    def checkpoint(self) -> Checkpoint:
        return parse_checkpoint(parse_note(self.note).text)


@dataclass(frozen=True, slots=True)
class Offered:
    """A checkpoint to be witnessed, with the proof that it grew from one of ``old`` entries."""

    key: str
    note: str
    old: int
    proof: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Grown:
    """It is the log that was seen, or the first one: ``checkpoint`` may be cosigned."""

    seen: Seen
    checkpoint: Checkpoint
    is_new: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """It cannot be judged: a proof from ``size`` entries on is needed."""

    size: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It is not the log that was seen. Both notes are the evidence: each is signed by the log itself."""

    cause: str
    sentence: str
    seen: str
    offered: str


def judge(seen: Seen | None, offered: Offered) -> Grown | Ask | Refused:
    """Compare with what was seen; nothing is believed that the pinned key did not sign."""
    try:
        note = parse_note(offered.note)
        checkpoint = parse_checkpoint(note.text)
        key = parse_key(offered.key)
    except BadNoteError as error:
        return _refused("malformed", str(error), seen, offered)
    if key.name != checkpoint.origin or not signed_by(note, key):
        return _refused("bad_signature", "the checkpoint is not signed by the key it came with.", seen, offered)
    if seen is None:
        return Grown(Seen(offered.key, offered.note), checkpoint, is_new=True)
    pinned = parse_key(seen.key)
    # A log changes its key by signing one checkpoint with both.
    if pinned != key and not signed_by(note, pinned):
        sentence = f"it is signed by key {key.id.hex()}; the log's key is {pinned.id.hex()}."
        return _refused("swapped_key", sentence, seen, offered)
    return _compared(seen, offered, checkpoint, key)


def _compared(seen: Seen, offered: Offered, now: Checkpoint, key: Key) -> Grown | Ask | Refused:
    before = seen.checkpoint
    if now.size < before.size:
        sentence = f"it has {now.size} entries and had {before.size}: an older copy was put back, or its end cut off."
        return _refused("shrunk", sentence, seen, offered)
    if now.size == before.size:
        if now.root != before.root:
            sentence = (
                f"its first {before.size} entries are not those that were seen: it was rewritten or split in two."
            )
            return _refused("forked", sentence, seen, offered)
        return Grown(Seen(key.text(), offered.note), now, is_new=False)
    if offered.old != before.size:
        return Ask(before.size)
    if not merkle.extends(before.size, before.root, now.size, now.root, offered.proof):
        sentence = f"its first {before.size} entries are not those that were seen: it was rewritten or split in two."
        return _refused("forked", sentence, seen, offered)
    return Grown(Seen(key.text(), offered.note), now, is_new=True)


def _refused(cause: str, sentence: str, seen: Seen | None, offered: Offered) -> Refused:
    return Refused(cause, sentence, seen.note if seen else "", offered.note)
