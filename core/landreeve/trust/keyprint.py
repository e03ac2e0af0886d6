"""A key's fingerprint as people compare it: on the box's terminal and at the hub, the same 32 digits."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

GROUPS = 8


def public_bytes(key: "ec.EllipticCurvePublicKey") -> bytes:
    """The key in DER (SubjectPublicKeyInfo, RFC 5280 4.1)."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def keyprint(key: "ec.EllipticCurvePublicKey") -> str:
    """128 bits of the sha256 of the key in DER, in `GROUPS` groups of four hex digits."""
    digits = hashlib.sha256(public_bytes(key)).hexdigest()
    return " ".join(digits[4 * i : 4 * i + 4] for i in range(GROUPS))
