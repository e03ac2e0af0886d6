"""Blobs sealed at rest: AES-256-GCM in chunks of 64 KiB, readable by position.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizar 2015, https://eprint.iacr.org/2015/189): chunk ``i`` has
the nonce ``i (11 bytes) ‖ last (1 byte)``, so chunks cannot be reordered, left out, or cut off the end. Each file has
its own key, HKDF-SHA256 of the store's key with a salt drawn for the file, so nonces never meet under one key.
The header (with the blob's digest and length) is bound into every chunk.

``LRE1`` · 8 bytes key id · 32 bytes salt · 8 bytes plain length · chunks, each followed by its 16 byte tag

The file of a blob that is arriving is filled by position. A chunk is then written twice only with the very bytes that
its digest names, which gives the same ciphertext; where no digests are known a fresh file has a fresh salt.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from landreeve.blobs.codec import BlobReader, BlobWriter, PlainCodec, read_all, reserved, write_all
from landreeve.blobs.errors import CorruptBlobError
from landreeve.sealed.errors import KeyMissingError
from landreeve.wire.codec import BLOCK_BYTES

MAGIC = b"LRE1"
TAG_BYTES = 16
_HEAD = struct.Struct(">4s8s32sQ")
HEAD_BYTES = _HEAD.size
_SEALED_CHUNK = BLOCK_BYTES + TAG_BYTES


class SealedCodec:
    """Seals with the newest of ``keys`` and opens with any: id of 16 hex digits → 32 bytes, the newest last.

    Files that are not sealed are read as they are: a store is converted while it is in use.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)
        self._newest = next(reversed(self._keys))

    def stored_bytes(self, size: int) -> int:
        return HEAD_BYTES + size + TAG_BYTES * _chunks(size)

    def encode(self, digest: str, data: bytes) -> bytes:
        head = self._fresh_head(len(data))
        box = self._box(head, digest)
        pieces = (data[at : at + BLOCK_BYTES] for at in range(0, max(1, len(data)), BLOCK_BYTES))
        return b"".join([head, *(box.seal(index, piece) for index, piece in enumerate(pieces))])

    def open(self, path: Path, digest: str) -> BlobReader:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        head = os.pread(handle, HEAD_BYTES, 0)
        if not self._is_ours(path, digest, head):
            os.close(handle)
            return PlainCodec().open(path, digest)
        try:
            return _Reader(handle, self._box(head, digest), path)
        except BaseException:
            os.close(handle)
            raise

    def writer(self, path: Path, digest: str, size: int, *, fresh: bool) -> BlobWriter:
        if fresh:
            path.unlink(missing_ok=True)
        handle = reserved(path, self.stored_bytes(size))
        head = os.pread(handle, HEAD_BYTES, 0)
        if not self._fits(head, size):
            # Not ours, or torn by a crash: what lies behind it is under no key we know, and will be fetched again.
            head = self._fresh_head(size)
            write_all(handle, 0, head)
            os.fsync(handle)  # before any chunk: a chunk without its salt is lost
        return _Writer(handle, self._box(head, digest))

    def is_sealed(self, path: Path) -> bool:
        """Whether the blob's file, named by its digest, is sealed at all."""
        with path.open("rb") as file:
            return self._is_ours(path, path.name, file.read(HEAD_BYTES))

    def knows(self, path: Path) -> bool:
        """Whether the file is sealed with one of the keys."""
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return _is_sealed(head) and _HEAD.unpack(head)[1].hex() in self._keys

    def is_current(self, path: Path) -> bool:
        """Whether the file is sealed with the newest key."""
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        return _is_sealed(head) and _HEAD.unpack(head)[1].hex() == self._newest

    def _is_ours(self, path: Path, digest: str, head: bytes) -> bool:
        """Whether the file is sealed. Plain blobs may begin like anything, so also like one sealed with a key we lack:
        only then the whole is read."""
        if not _is_sealed(head):
            return False
        if _HEAD.unpack(head)[1].hex() in self._keys:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != digest

    def _fresh_head(self, size: int) -> bytes:
        return _HEAD.pack(MAGIC, bytes.fromhex(self._newest), os.urandom(32), size)

    def _fits(self, head: bytes, size: int) -> bool:
        if not _is_sealed(head):
            return False
        _, key, _, length = _HEAD.unpack(head)
        return key.hex() in self._keys and length == size

    def _box(self, head: bytes, digest: str) -> "_Box":
        _, key_id, salt, size = _HEAD.unpack(head)
        key = self._keys.get(key_id.hex())
        if key is None:
            raise KeyMissingError(
                f"blob {digest}: it is sealed with the key {key_id.hex()}, which the vault does not hold"
            )
        return _Box(derive(key, salt, b"landreeve/blob/1:" + digest.encode()), head + digest.encode(), size)


class _Box:
    """Chunks of one file."""

    def __init__(self, key: bytes, bound: bytes, size: int) -> None:
        self._cipher = AESGCM(key)
        self._bound = bound
        self.size = size
        self.last = _chunks(size) - 1

    def seal(self, index: int, data: bytes) -> bytes:
        return self._cipher.encrypt(self._nonce(index), data, self._bound)

    def unseal(self, index: int, sealed: bytes) -> bytes:
        """Raises `InvalidTag`."""
        return self._cipher.decrypt(self._nonce(index), sealed, self._bound)

    def _nonce(self, index: int) -> bytes:
        return index.to_bytes(11, "big") + (b"\x01" if index == self.last else b"\x00")


class _Reader:
    def __init__(self, handle: int, box: _Box, path: Path) -> None:
        self._handle = handle
        self._box = box
        self._path = path
        self.size = box.size

    def read_at(self, offset: int, length: int) -> bytes:
        stop = min(self.size, offset + max(length, 0))
        if offset >= stop:
            return b""
        first, last = offset // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        sealed = read_all(self._handle, HEAD_BYTES + first * _SEALED_CHUNK, (last - first + 1) * _SEALED_CHUNK)
        start = offset - first * BLOCK_BYTES
        return self._unsealed(first, last, sealed)[start : start + stop - offset]

    def _unsealed(self, first: int, last: int, sealed: bytes) -> bytes:
        view = memoryview(sealed)
        try:
            chunks = [
                self._box.unseal(index, view[place : place + _SEALED_CHUNK])  # type: ignore[arg-type]
                for place, index in zip(range(0, len(sealed), _SEALED_CHUNK), range(first, last + 1), strict=True)
            ]
        except (InvalidTag, ValueError) as error:
            raise CorruptBlobError(
                f"blob {self._path} no longer has its digest: the sealed file was changed; fetch or push it again"
            ) from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()


class _Writer:
    def __init__(self, handle: int, box: _Box) -> None:
        self._handle = handle
        self._box = box

    def write_at(self, offset: int, data: bytes) -> None:
        index, within = divmod(offset, BLOCK_BYTES)
        if within:
            raise ValueError(f"a sealed blob is written in whole blocks, not at {offset}")
        write_all(self._handle, HEAD_BYTES + index * _SEALED_CHUNK, self._box.seal(index, data))

    def read_at(self, offset: int, length: int) -> bytes | None:
        first, count = offset // BLOCK_BYTES, -(-length // BLOCK_BYTES)
        sealed = read_all(self._handle, HEAD_BYTES + first * _SEALED_CHUNK, count * _SEALED_CHUNK)
        try:
            return b"".join(
                self._box.unseal(first + n, sealed[n * _SEALED_CHUNK : (n + 1) * _SEALED_CHUNK]) for n in range(count)
            )
        except (InvalidTag, ValueError):
            return None

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self.close()


def derive(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose: HKDF-SHA256 (RFC 5869)."""
    return HKDF(SHA256(), 32, salt, purpose).derive(key)


def _chunks(size: int) -> int:
    return max(1, -(-size // BLOCK_BYTES))


def _is_sealed(head: bytes) -> bool:
    return len(head) == HEAD_BYTES and head.startswith(MAGIC)
