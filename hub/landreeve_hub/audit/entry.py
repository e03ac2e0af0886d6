"""Audit entries: canonical bytes, the chain of hashes, signed checkpoints, and the check of all three. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from landreeve_hub.audit import merkle

GENESIS = "0" * 64


class Entry(msgspec.Struct, frozen=True):
    """Who did what to which object, and whether it was allowed. ``prev`` and ``hash`` are 64 hex digits."""

    seq: int
    at: str
    actor: str
    action: str
    object: str
    decision: str
    data: dict[str, Any]
    prev: str
    hash: str = ""


class Act(msgspec.Struct, frozen=True):
    """What there is to record: ``decision`` is ``allowed`` or ``denied``."""

    actor: str
    action: str
    object: str
    decision: str = "allowed"
    data: dict[str, Any] = {}


class Checkpoint(msgspec.Struct, frozen=True):
    """The tree's size and root at a moment; ``signature`` is ed25519 over `note`, in hex."""

    size: int
    root: str
    at: str
    signature: str = ""

    def note(self) -> bytes:
        """The signed text, line by line as in a C2SP checkpoint."""
        return f"landreeve-hub/audit\n{self.size}\n{self.root}\n{self.at}\n".encode()


class Verified(msgspec.Struct, frozen=True):
    """The log is whole: every entry is as it was written, none is missing up to the checkpoint."""

    entries: int
    checkpoint: int
    root: str


class Tampered(msgspec.Struct, frozen=True):
    """The log is not what was written. ``seq`` is where it shows."""

    seq: int
    sentence: str


def canonical(entry: Entry) -> bytes:
    """The bytes that are hashed: sorted members, no spaces, without the hash itself."""
    members = msgspec.to_builtins(entry)
    del members["hash"]
    return msgspec.json.encode(members, order="sorted")


def sealed(entry: Entry) -> Entry:
    """The entry with its hash, which is also its leaf of the tree."""
    return msgspec.structs.replace(entry, hash=merkle.leaf_hash(canonical(entry)).hex())


def root_of(entries: Sequence[Entry]) -> str:
    return merkle.root([bytes.fromhex(entry.hash) for entry in entries]).hex()


def verify(entries: Sequence[Entry], checkpoint: Checkpoint | None) -> Verified | Tampered:
    """Check chain, numbering and the checkpoint, whose signature the caller has checked."""
    before = GENESIS
    for number, entry in enumerate(entries, start=1):
        problem = _problem(entry, number, before)
        if problem:
            return Tampered(number, problem)
        before = entry.hash
    size = checkpoint.size if checkpoint else 0
    if len(entries) < size:
        return Tampered(len(entries) + 1, f"{size - len(entries)} of {size} entries are gone from the end of the log.")
    if checkpoint and root_of(entries[:size]) != checkpoint.root:
        return Tampered(1, f"the first {size} entries were rewritten after the checkpoint of {checkpoint.at}.")
    return Verified(len(entries), size, root_of(entries))


def _problem(entry: Entry, number: int, before: str) -> str:
    if entry.seq != number:
        return f"entry {number} is missing; the next one found is {entry.seq}."
    if sealed(entry).hash != entry.hash:
        return f"entry {number} was changed after it was written."
    if entry.prev != before:
        return f"entry {number} does not follow entry {number - 1}."
    return ""
