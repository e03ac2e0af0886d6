"""The hub's audit log: appended in the transaction of what it records, sealed by signed checkpoints."""

import os
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection, insert, select

from landreeve_hub.audit.entry import GENESIS, Act, Checkpoint, Entry, Tampered, Verified, root_of, sealed, verify
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339


class AuditLog:
    """Append with `record` (or `record_in` inside a transaction), seal with `checkpoint`, check with `verify`.

    The signing key is ``keys/audit.pem`` and the newest checkpoint ``keys/audit.checkpoint``: both lie outside
    the database, so someone who can write the tables alone cannot hide it.
    """

    def __init__(self, store: Store, keys: Path) -> None:
        self._store = store
        self._key = _load_key(keys / "audit.pem")
        self._path = keys / "audit.checkpoint"

    def record_in(self, connection: Connection, now: datetime, act: Act) -> Entry:
        """Append within the caller's transaction: the effect and its record are kept or lost together."""
        last = connection.execute(
            select(tables.audit.c.seq, tables.audit.c.hash).order_by(tables.audit.c.seq.desc()).limit(1)
        ).first()
        # What JSON cannot hold as itself becomes what JSON reads back, or the hash would not hold.
        plain = msgspec.json.decode(msgspec.json.encode(act.data))
        seq, prev = (last.seq + 1, last.hash) if last else (1, GENESIS)
        entry = sealed(Entry(seq, rfc3339(now), act.actor, act.action, act.object, act.decision, plain, prev))
        connection.execute(insert(tables.audit).values(msgspec.to_builtins(entry)))
        return entry

    async def record(self, now: datetime, act: Act) -> Entry:
        """Append in a transaction of its own."""
        return await self._store.write(lambda c: self.record_in(c, now, act))

    async def checkpoint(self, now: datetime) -> Checkpoint | None:
        """Sign the log as it stands, unless nothing came since; refuses to seal a log that does not verify."""
        entries = await self._store.read(_entries)
        newest = self.newest_checkpoint()
        if not entries or (newest and newest.size == len(entries)):
            return newest
        if isinstance(verify(entries, newest), Tampered):
            return newest
        bare = Checkpoint(len(entries), root_of(entries), rfc3339(now))
        signed = msgspec.structs.replace(bare, signature=self._key.sign(bare.note()).hex())
        _replace(self._path, msgspec.json.encode(signed))
        return signed

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest signed checkpoint, or None before the first."""
        if not self._path.exists():
            return None
        return msgspec.json.decode(self._path.read_bytes(), type=Checkpoint)

    async def verify(self) -> Verified | Tampered:
        """Whether the log is whole: chain, numbering, and the signed checkpoint."""
        try:
            newest = self.newest_checkpoint()
            if newest:
                self._key.public_key().verify(bytes.fromhex(newest.signature), newest.note())
        except (InvalidSignature, msgspec.DecodeError, ValueError):
            return Tampered(0, f"the checkpoint {self._path.name} does not carry this hub's signature.")
        return verify(await self._store.read(_entries), newest)


def _entries(connection: Connection) -> list[Entry]:
    rows = connection.execute(select(tables.audit).order_by(tables.audit.c.seq)).mappings()
    return [Entry(**row) for row in rows]


def _load_key(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _replace(path, made)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"{path}: the audit key must be ed25519; move the file away to have a new one made")
    return key


def _replace(path: Path, data: bytes) -> None:
    """Write whole or not at all, readable by the owner alone."""
    temporary = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
