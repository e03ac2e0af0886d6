"""Lines sealed one write at a time, for files that are appended and read from an offset (the capture spool).

A sealed piece is one line: ``!``, 8 hex digits of the key's id, and base64 of nonce, ciphertext and tag. The file's
name is bound into it, so a piece cannot be moved to another file; a torn last line is told by its missing end, as
before.
"""

import base64
import binascii
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MARK = b"!"
_NONCE = 12
_ID = 8


class LineSealer:
    """Seals with the newest of ``keys`` (id → 32 bytes, newest last), opens with any; plain lines pass as they are."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._ciphers = {name[:_ID]: AESGCM(key) for name, key in keys.items()}
        self._newest = next(reversed(self._ciphers))

    def seal(self, name: str, lines: bytes | bytearray) -> bytes:
        """Whole lines of the file of that name as one sealed line."""
        nonce = os.urandom(_NONCE)
        box = nonce + self._ciphers[self._newest].encrypt(nonce, bytes(lines), name.encode())
        return MARK + self._newest.encode() + base64.b64encode(box) + b"\n"

    def unseal(self, name: str, line: bytes) -> bytes | None:
        """The lines in a sealed line; the line itself when it is not sealed; None when it cannot be opened."""
        if not line.startswith(MARK):
            return line
        cipher = self._ciphers.get(line[1 : 1 + _ID].decode("ascii", "replace"))
        try:
            box = base64.b64decode(line[1 + _ID :], validate=True)
            return cipher.decrypt(box[:_NONCE], box[_NONCE:], name.encode()) if cipher else None
        except (InvalidTag, ValueError, binascii.Error):
            return None
