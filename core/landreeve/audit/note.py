"""Signed notes and checkpoints (C2SP: https://c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature). Pure.

A checkpoint is the text ``origin\\nsize\\nbase64 root\\n``; a note is that text, an empty line, and a line
``— name base64(key id ‖ signature)`` for each signer. A witness signs ``cosignature/v1`` and a time before the text.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # cryptography takes 8 MB: a site without a hub writes its log without it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_ED25519, _COSIGNATURE = 1, 4
_NAME = re.compile(r"[^\s+]{1,200}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
MAX_NOTE_BYTES = 64 * 1024


class BadNoteError(ValueError):
    """Text that is no signed note, checkpoint or verifier key; it says what is wrong."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How many entries a log has and the root of their tree."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


@dataclass(frozen=True, slots=True)
class Key:
    """A public key under a name; ``kind`` is 1 for a log, 4 for a witness."""

    name: str
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that find the signature of this key in a note."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    def text(self) -> str:
        """``name+id+base64``, as verifiers read it."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(bytes([self.kind]) + self.public).decode()}"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line of a note."""

    name: str
    key_id: bytes
    value: bytes

    def line(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.value).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and who signed it."""

    text: str
    signatures: tuple[Signature, ...]

    def whole(self) -> str:
        return self.text + "\n" + "".join(signature.line() for signature in self.signatures)


def parse_key(text: str) -> Key:
    """The key in a ``name+id+base64`` text; `BadNoteError`."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    raw = _decoded(encoded, "verifier key")
    if not _NAME.fullmatch(name) or len(raw) != 33 or raw[0] not in (_ED25519, _COSIGNATURE):
        raise BadNoteError(f"verifier key {text[:80]!r}: write it as name+id+base64 of an ed25519 key")
    key = Key(name, raw[0], raw[1:])
    if key.id.hex() != key_id:
        raise BadNoteError(f"verifier key {text[:80]!r}: its id does not fit its key")
    return key


def parse_note(text: str) -> Note:
    """The note in a text; `BadNoteError`."""
    body, blank, tail = text.rpartition("\n\n")
    if len(text) > MAX_NOTE_BYTES or not blank or not tail.endswith("\n"):
        raise BadNoteError("no signed note: a text, an empty line, and signature lines are expected")
    return Note(body + "\n", tuple(parse_line(line) for line in tail[:-1].split("\n")))


def parse_line(line: str) -> Signature:
    """The signature in a line, with or without its end; `BadNoteError`."""
    dash, _, rest = line.removesuffix("\n").partition(" ")
    name, _, encoded = rest.partition(" ")
    raw = _decoded(encoded, "signature")
    if dash != "—" or not _NAME.fullmatch(name) or len(raw) < 5:
        raise BadNoteError(f"signature line {line[:80]!r}: write it as — name base64")
    return Signature(name, raw[:4], raw[4:])


def parse_checkpoint(text: str) -> Checkpoint:
    """The checkpoint a note's text is; `BadNoteError`."""
    lines = text.split("\n")
    if len(lines) < 4 or not _NAME.fullmatch(lines[0]) or not _SIZE.fullmatch(lines[1]):
        raise BadNoteError("no checkpoint: origin, size and root on a line each are expected")
    root = _decoded(lines[2], "root")
    if len(root) != 32:
        raise BadNoteError(f"no checkpoint: a root of {len(root)} bytes")
    return Checkpoint(lines[0], int(lines[1]), root)


def log_key(name: str, private: "Ed25519PrivateKey") -> Key:
    return Key(name, _ED25519, private.public_key().public_bytes_raw())


def witness_key(name: str, private: "Ed25519PrivateKey") -> Key:
    return Key(name, _COSIGNATURE, private.public_key().public_bytes_raw())


def sign(text: str, name: str, private: "Ed25519PrivateKey") -> Signature:
    """A log's signature under its own text."""
    return Signature(name, log_key(name, private).id, private.sign(text.encode()))


def cosign(text: str, name: str, private: "Ed25519PrivateKey", unix_s: int) -> Signature:
    """A witness's signature under another's checkpoint, with the time at which it was seen."""
    message = _cosigned(text, unix_s)
    return Signature(name, witness_key(name, private).id, unix_s.to_bytes(8, "big") + private.sign(message))


def signed_by(note: Note, key: Key) -> bool:
    """Whether the note carries a valid signature of that key."""
    return any(is_valid(note.text, signature, key) for signature in note.signatures)


def is_valid(text: str, signature: Signature, key: Key) -> bool:
    """Whether the signature is that key's, under that text."""
    if (signature.name, signature.key_id) != (key.name, key.id):
        return False
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    value, message = signature.value, text.encode()
    if key.kind == _COSIGNATURE:
        if len(value) != 72:
            return False
        message, value = _cosigned(text, int.from_bytes(value[:8], "big")), value[8:]
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(value, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def with_lines(note: Note, more: Iterable[Signature]) -> Note:
    """The note with further signatures, each name and key once."""
    found = {(s.name, s.key_id): s for s in (*note.signatures, *more)}
    return Note(note.text, tuple(found.values()))


def encode_proof(proof: Sequence[bytes]) -> tuple[str, ...]:
    """Hashes as base64, as they travel."""
    return tuple(base64.b64encode(node).decode() for node in proof)


def decode_proof(proof: Sequence[str]) -> list[bytes]:
    """The hashes of `encode_proof`; `BadNoteError`."""
    if len(proof) > 128:
        raise BadNoteError(f"a proof of {len(proof)} hashes")
    nodes = [_decoded(node, "proof") for node in proof]
    if any(len(node) != 32 for node in nodes):
        raise BadNoteError("a proof is made of hashes of 32 bytes")
    return nodes


def _cosigned(text: str, unix_s: int) -> bytes:
    return f"cosignature/v1\ntime {unix_s}\n{text}".encode()


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadNoteError(f"{what}: {text[:60]!r} is no base64") from error
