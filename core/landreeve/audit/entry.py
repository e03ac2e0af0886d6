"""Audit entries: their canonical bytes, which are a leaf of the tree, and the chain from each to the next. Pure.

Format 0 is what version 0.1 of the hub wrote before logs were shared; its entries stay verifiable as they are. Format 1
is canonical JSON (RFC 8785), and what is personal in it stands as a salted commitment (`landreeve.audit.personal`).
"""

from typing import Any, Literal

import msgspec

from landreeve.audit import merkle
from landreeve.audit.canonical import canonical as jcs
from landreeve.audit.canonical import plain

GENESIS = "0" * 64
FORMAT = 1


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
    format: int = 0


class Act(msgspec.Struct, frozen=True):
    """What there is to record: ``decision`` is ``allowed`` or ``denied``.

    ``personal`` names the members that are about a person (``actor``, ``object``, ``data.NAME``), each with the subject
    whose erasure takes it away.
    """

    actor: str
    action: str
    object: str
    decision: Literal["allowed", "denied"] | str = "allowed"
    data: dict[str, Any] = {}
    personal: dict[str, str] = {}


class Tampered(msgspec.Struct, frozen=True):
    """The log is not what was written. ``seq`` is where it shows."""

    seq: int
    sentence: str


def made(seq: int, at: str, act: Act, prev: str) -> Entry:
    """The entry of an act, with its hash."""
    bare = Entry(
        seq=seq,
        at=at,
        actor=plain(act.actor),
        action=plain(act.action),
        object=plain(act.object),
        decision=act.decision,
        data=plain(act.data),
        prev=prev,
        format=FORMAT,
    )
    return sealed(bare)


def canonical(entry: Entry) -> bytes:
    """The bytes that are hashed: everything but the hash itself."""
    members = msgspec.to_builtins(entry)
    del members["hash"]
    if entry.format == 0:
        del members["format"]
        return msgspec.json.encode(members, order="sorted")
    return jcs(members)


def sealed(entry: Entry) -> Entry:
    """The entry with its hash, which is also its leaf of the tree."""
    return msgspec.structs.replace(entry, hash=leaf(entry).hex())


def leaf(entry: Entry) -> bytes:
    return merkle.leaf_hash(canonical(entry))


def fault_of(entry: Entry, number: int, before: str) -> Tampered | None:
    """What is wrong with an entry at that place of the log, after one with the hash ``before``."""
    if entry.seq != number:
        return Tampered(number, f"entry {number} is missing; the next one found is {entry.seq}.")
    try:
        right = entry.format in (0, FORMAT) and leaf(entry).hex() == entry.hash
    except (ValueError, TypeError):
        right = False
    if not right:
        return Tampered(number, f"entry {number} was changed after it was written.")
    if entry.prev != before:
        return Tampered(number, f"entry {number} does not follow entry {number - 1}.")
    return None


class Verified(msgspec.Struct, frozen=True):
    """The log is whole: every entry is as it was written, none is missing up to the checkpoint. ``witnesses`` counts
    who cosigned it."""

    entries: int
    checkpoint: int
    root: str
    witnesses: int = 0
