"""What is personal in an entry: a salted commitment in the log, the value sealed beside it under its subject's key.

Destroying the key erases the value everywhere sealed copies lie without it, exports included; a backup that holds the
key as well has to go too. The commitment says nothing without its salt, so the log still verifies. Pure: salts, nonces
and keys are drawn by the caller.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from landreeve.audit.canonical import canonical, plain

SALT_BYTES = 32
KEY_BYTES = 32
NONCE_BYTES = 12
PREFIX = "commit:"


@dataclass(frozen=True, slots=True)
class Draw:
    """Randomness for one value."""

    salt: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    """A value sealed for its subject: member of the entry it belongs to, and the box."""

    member: str
    box: bytes


def commitment(salt: bytes, member: str, value: Any) -> str:
    """``commit:`` and 64 hex digits.

    >>> commitment(bytes(32), "actor", "ann")[:15]
    'commit:7c00772a'
    """
    return PREFIX + hashlib.sha256(salt + member.encode() + b"\x00" + canonical(plain(value))).hexdigest()


def seal(key: bytes, draw: Draw, seq: int, member: str, value: Any) -> Sealed:
    """The value and its salt under the subject's key, bound to its entry."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    data = msgspec.json.encode([draw.salt.hex(), plain(value)])
    return Sealed(member, draw.nonce + AESGCM(key).encrypt(draw.nonce, data, _bound(seq, member)))


def unseal(key: bytes, seq: int, member: str, box: bytes, committed: str) -> Any:
    """The value; ValueError when key, box and commitment do not belong together."""
    return opened(key, seq, member, box, committed)[1]


def opened(key: bytes, seq: int, member: str, box: bytes, committed: str) -> tuple[bytes, Any]:
    """Salt and value; ValueError as `unseal`."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        data = AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], _bound(seq, member))
        salt, value = msgspec.json.decode(data)
        right = commitment(bytes.fromhex(salt), member, value) == committed
    except (InvalidTag, msgspec.DecodeError, TypeError) as error:
        raise ValueError(f"entry {seq}: the sealed {member} cannot be opened with this key") from error
    if not right:
        raise ValueError(f"entry {seq}: the sealed {member} is not what the entry commits to")
    return bytes.fromhex(salt), value


def _bound(seq: int, member: str) -> bytes:
    return f"landreeve/audit/1:{seq}:{member}".encode()
