"""The hub's audit log: appended in the transaction of what it records, sealed by signed checkpoints."""

import logging
import os
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from landreeve.audit import export, finding, keys, ledger
from landreeve.audit.export import Archive, Manifest
from landreeve.audit.finding import Wanted
from landreeve.audit.note import BadNoteError, Checkpoint
from landreeve.audit.sealing import Sealer
from sqlalchemy import Connection, text

from landreeve_hub.audit.entry import Act, Entry, Tampered, Verified, with_person
from landreeve_hub.audit.shelf import HubShelf
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

log = logging.getLogger(__name__)
ORIGIN = "landreeve-hub/audit"


class _Legacy(msgspec.Struct, frozen=True):
    """A checkpoint as version 0.1 first wrote it."""

    size: int
    root: str
    at: str
    signature: str

    def signed(self) -> bytes:
        return f"landreeve-hub/audit\n{self.size}\n{self.root}\n{self.at}\n".encode()


class AuditLog:
    """Append with `record` (or `record_in` inside a transaction), seal with `checkpoint`, check with `verify`.

    The signing key is ``keys/audit.pem`` and the newest checkpoint ``keys/audit.checkpoint``: both lie outside
    the database, so someone who can write the tables alone cannot hide it. `fault` is what
    the last sealing found wrong.
    """

    def __init__(self, store: Store, folder: Path, origin: str = ORIGIN) -> None:
        self._store = store
        self.keys = keys.load(folder, origin)
        self._sealer = Sealer(self.keys, folder / "audit.checkpoint", self._legacy)
        self.fault: Tampered | None = None

    def record_in(self, connection: Connection, now: datetime, act: Act) -> Entry:
        """Append within the caller's transaction: the effect and its record are kept or lost together."""
        return ledger.append(HubShelf(connection), rfc3339(now), with_person(act), os.urandom)

    async def record(self, now: datetime, act: Act) -> Entry:
        """Append in a transaction of its own."""
        return await self._store.write(lambda c: self.record_in(c, now, act))

    async def checkpoint(self, now: datetime) -> Checkpoint | None:
        """Sign the log as it stands, unless nothing came since; refuses to seal a log that did not grow from the last
        checkpoint. O(new + log n)."""
        try:
            newest = self.newest_checkpoint()
        except BadNoteError as error:
            self.fault = Tampered(0, str(error))
            return None
        made = await self._store.write(lambda c: self._sealer.seal(HubShelf(c), newest, rfc3339(now)))
        self.fault = made if isinstance(made, Tampered) else None
        if isinstance(made, Tampered):
            log.error("the audit log is not sealed: %s", made.sentence)
            return newest
        self._sealer.keep(made)
        return self.newest_checkpoint()

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest signed checkpoint of the file, or None before the first; `BadNoteError` when its signature is not
        this log's."""
        return self._sealer.newest()

    def _legacy(self, data: bytes) -> Checkpoint:
        try:
            old = msgspec.json.decode(data, type=_Legacy)
            self.keys.log.public_key().verify(bytes.fromhex(old.signature), old.signed())
            return Checkpoint("landreeve-hub/audit", old.size, bytes.fromhex(old.root))
        except (InvalidSignature, msgspec.DecodeError, ValueError) as error:
            raise BadNoteError("the checkpoint audit.checkpoint does not carry this hub's signature.") from error

    async def verify(self) -> Verified | Tampered:
        """Whether the log is whole: chain, numbering, tree, and every signed checkpoint. Reads all of it."""
        try:
            newest = self.newest_checkpoint()
        except BadNoteError as error:
            return Tampered(0, str(error))
        return await self._store.read(lambda c: ledger.verify(HubShelf(c), newest, self.keys.key))

    async def listed(self, before: int, limit: int, wanted: Wanted = Wanted()) -> list[Entry]:  # noqa: B008  frozen
        """What is wanted of the entries below ``before`` (0: from the newest), newest first, with what is personal in
        them readable; ValueError says what of ``wanted`` cannot be used."""
        return await self._store.read(lambda c: finding.newest(HubShelf(c), wanted, before, limit))

    async def export(self, path: Path, now: datetime, by: str, *, reveal: bool = False) -> Manifest:
        """Write the log into a zip that stands alone, sealed first; the export is itself recorded before."""
        await self.record(now, Act(by, "audit.export", "audit", data={"personal": reveal}))
        await self.checkpoint(now)

        def write(connection: Connection) -> Manifest:
            archive = Archive(path)
            try:
                return export.write(HubShelf(connection), self.keys.key, rfc3339(now), archive, reveal=reveal)
            finally:
                archive.close()

        return await self._store.read(write)

    def erase_in(self, connection: Connection, now: datetime, name: str, by: str) -> dict[str, int | str]:
        """Destroy the key of whom entries are about; the log still verifies. LookupError when nobody of that name is.

        ``plain`` counts entries of before commitments, which name the person for ever: a chain cannot forget them.
        """
        shelf = HubShelf(connection)
        subject = shelf.subject(name)
        if subject is None:
            raise LookupError(f"no entry of the audit log is about {name[:80]!r}")
        counted = text("SELECT count(DISTINCT seq) FROM audit_private WHERE subject = :id")
        plain = text("SELECT count(*) FROM audit WHERE format = 0 AND (actor = :name OR object = :name)")
        entries = connection.execute(counted, {"id": subject.id}).scalar_one()
        left = connection.execute(plain, {"name": name}).scalar_one()
        shelf.erase(subject.id, rfc3339(now))
        data = {"entries": entries, "plain": left}
        self.record_in(connection, now, Act(by, "audit.erase", subject.id, data=data))
        return {"subject": subject.id, "entries": entries, "plain": left}
