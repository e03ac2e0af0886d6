"""The site's audit log: every act the hub is told of, and every step of an update, in the write that makes it true.

Sealed and witnessed like the hub's own: a box whose store was put back to an older copy is found out by its hub.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from landreeve.audit import export, finding, ledger, note
from landreeve.audit.entry import Act, Entry, Tampered, Verified
from landreeve.audit.export import Archive, Manifest
from landreeve.audit.finding import Wanted
from landreeve.audit.note import BadNoteError, Checkpoint
from landreeve.audit.sealing import Sealer
from landreeve.wire.messages import Audit, UpdateReport
from sqlite_utils import Database as Tables

from landreeve_agent.audit.shelf import SiteShelf
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp

if TYPE_CHECKING:
    from landreeve.audit.keys import LogKeys

logger = logging.getLogger(__name__)

_SETTINGS = "audit.settings"


class SiteLog:
    """``folder`` holds the log's keys and its newest checkpoint, outside the database."""

    def __init__(self, database: Database, outbox: Outbox, folder: Path, clock: Callable[[], datetime]) -> None:
        self.database = database
        self._clock = clock
        self._outbox = outbox
        self._folder = folder
        self.fault: Tampered | None = None
        outbox.enter(Audit, self._enter_act)
        outbox.enter(UpdateReport, self._enter_update)

    @cached_property
    def keys(self) -> "LogKeys":
        """The log's keys, loaded with cryptography when they are first needed: recording needs neither."""
        from landreeve.audit import keys

        bare = keys.load(self._folder, "landreeve-site")
        public = note.log_key("landreeve-site", bare.log).public
        origin = f"landreeve-site/{hashlib.sha256(public).hexdigest()[:8]}"
        return keys.LogKeys(origin, bare.log, bare.witness)

    @cached_property
    def _sealer(self) -> Sealer:
        return Sealer(self.keys, self._folder / "audit.checkpoint")

    def _enter_act(self, tables: Tables, body: Audit, now: datetime) -> Audit:
        entry = self.record_in(tables, now, Act(body.actor, body.action, body.object, body.decision, body.data))
        return msgspec.structs.replace(body, seq=entry.seq, leaf=entry.hash)

    def _enter_update(self, tables: Tables, body: UpdateReport, now: datetime) -> UpdateReport:
        data = {
            name: getattr(body, name) for name in ("rollout", "generation", "release", "version", "previous", "cause")
        }
        self.record_in(tables, now, Act("agent", f"update.{body.state.lower()}", body.model, data=data))
        return body

    def record_in(self, tables: Tables, now: datetime, act: Act) -> Entry:
        """Append within the caller's write."""
        return ledger.append(SiteShelf(tables), stamp(now), act, os.urandom)

    async def seal(self) -> Checkpoint | None:
        """Sign the log as it stands, unless nothing came since."""
        try:
            newest = self._sealer.newest()
        except BadNoteError as error:
            self.fault = Tampered(0, str(error))
            return None
        at = stamp(self._clock())
        made = await self.database.write(lambda tables: self._sealer.seal(SiteShelf(tables), newest, at))
        self.fault = made if isinstance(made, Tampered) else None
        if isinstance(made, Tampered):
            logger.error("the audit log is not sealed: %s", made.sentence)
            return newest
        self._sealer.keep(made)
        return self._sealer.newest()

    async def verify(self) -> Verified | Tampered:
        """Whether the log is whole; reads all of it."""
        try:
            newest = self._sealer.newest()
        except BadNoteError as error:
            return Tampered(0, str(error))
        return await self.database.read(lambda tables: ledger.verify(SiteShelf(tables), newest, self.keys.key))

    async def export(self, path: Path, by: str) -> Manifest:
        """Write the log into a zip that stands alone, sealed first; the export is itself recorded before."""
        now = self._clock()
        body = Audit(actor=by, action="audit.export", object="audit", decision="allowed")
        await self.database.write(lambda tables: self._outbox.enqueue(tables, body, now))
        await self.seal()

        def write(tables: Tables) -> Manifest:
            archive = Archive(path)
            try:
                return export.write(SiteShelf(tables), self.keys.key, stamp(now), archive)
            finally:
                archive.close()

        return await self.database.read(write)

    async def listed(self, before: int, limit: int, wanted: Wanted = Wanted()) -> list[Entry]:  # noqa: B008  frozen
        """What is wanted of the entries below ``before`` (0: from the newest), newest first; ValueError says what of
        ``wanted`` cannot be used."""
        return await self.database.read(lambda tables: finding.newest(SiteShelf(tables), wanted, before, limit))

    async def note_settings(self, settings: Any, files: Mapping[str, Path]) -> None:
        """Record which settings, certificates and keys changed since the last start: they are files, which anybody may
        edit and other commands replace."""
        now, values = self._clock(), _flat(msgspec.to_builtins(settings))
        for name, path in files.items():
            values[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""
        await self.database.write(lambda tables: self._note_settings(tables, now, values))

    def _note_settings(self, tables: Tables, now: datetime, values: dict[str, str]) -> None:
        row = tables.conn.execute("SELECT value FROM meta WHERE key = ?", (_SETTINGS,)).fetchone()
        before = msgspec.json.decode(row[0], type=dict[str, str]) if row else {}
        changed = sorted(name for name in values.keys() | before.keys() if values.get(name) != before.get(name))
        if not changed:
            return
        tables.conn.execute(
            "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (_SETTINGS, msgspec.json.encode(values).decode()),
        )
        if row:  # the first start has nothing to compare with
            self.record_in(tables, now, Act("system", "settings.change", "agent.toml", data={"changed": changed}))


def _flat(values: Any, prefix: str = "") -> dict[str, str]:
    """Setting by its dotted name, as a digest: values may be private, that they changed is not."""
    if not isinstance(values, dict):
        return {prefix: hashlib.sha256(msgspec.json.encode(values)).hexdigest()[:16]}
    return {
        name: text for key, value in values.items() for name, text in _flat(value, f"{prefix}.{key}".strip(".")).items()
    }
