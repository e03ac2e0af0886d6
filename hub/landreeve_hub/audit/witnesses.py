"""The hub as witness of the sites' audit logs, and the sites as witnesses of the hub's."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any

import msgspec
from landreeve.audit import note
from landreeve.audit.note import BadNoteError
from landreeve.audit.sealing import Evidence, Watching, offer
from landreeve.audit.shelf import Cosigned as Line
from landreeve.audit.shelf import Watched
from landreeve.audit.witness import Offered, Refused
from landreeve.wire.codec import encode
from landreeve.wire.messages import AuditHead, Cosigned, Fact, Witness
from landreeve.wire.topics import Down, DownTopic, format_topic
from sqlalchemy import Connection, select

from landreeve_hub.audit.log import AuditLog
from landreeve_hub.audit.shelf import HubShelf
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import refused_log
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

log = logging.getLogger(__name__)
Publish = Callable[[str, bytes, bool], None]


class Witnesses:
    """Judges what devices send within the ingest's transaction, and answers once that is committed."""

    def __init__(
        self, store: Store, audit: AuditLog, incidents: Incidents, fleet: str, publish: Publish, *,
        clock: Callable[[], datetime],
    ) -> None:  # fmt: skip
        self._store = store
        self._audit = audit
        self._incidents = incidents
        self._fleet = fleet
        self._publish = publish
        self._clock = clock
        self._watching = Watching(audit.keys)

    def apply_head(self, connection: Connection, device: str, fact: Fact) -> None:
        """Judge a device's checkpoint; ValueError when it is none."""
        body = fact.body
        assert isinstance(body, AuditHead)  # noqa: S101 - as registered
        note.parse_key(body.witness_key)
        offered = Offered(body.key, body.note, body.old, note.decode_proof(body.proof))
        now = self._clock()
        verdict = self._watching.judge(HubShelf(connection), device, offered, now, mark=(fact.epoch, fact.seq))
        if verdict and isinstance(verdict.judged, Refused) and verdict.is_news:
            site = connection.execute(select(tables.devices.c.site).where(tables.devices.c.id == device)).scalar()
            found = verdict.judged
            evidence = {"seen": found.seen, "offered": found.offered}
            raised = refused_log(device, str(site or device), found.cause, found.sentence, evidence)
            self._incidents.open_in(connection, now, raised)

    def apply_line(self, connection: Connection, device: str, fact: Fact) -> None:
        """Keep a device's signature under a checkpoint of ours; ValueError when it is none."""
        body = fact.body
        assert isinstance(body, Cosigned)  # noqa: S101 - as registered
        shelf, key = HubShelf(connection), note.parse_key(body.key)
        known = shelf.watched(device)
        if known is None or not known.key or note.parse_key(known.key).name != key.name:
            raise ValueError(f"the cosigning key {key.name[:60]!r} is not that of this device's log")
        pinned = shelf.witness_key(key.name)
        if pinned and body.key != pinned:
            raise ValueError(f"{key.name} cosigns with another key than before")
        whole = shelf.note_of(body.size)
        if not whole or not note.is_valid(note.parse_note(whole).text, note.parse_line(body.line), key):
            raise ValueError(f"no checkpoint of {body.size} entries carries this cosignature")
        shelf.add_cosigned(Line(body.size, key.name, body.key, body.line, rfc3339(self._clock())))

    def answer(self, device: str, body: AuditHead) -> Future[None]:
        """Send what came of a device's checkpoint, and ours, from one of the store's readers: the ingest must not wait
        for a thousand proofs. Call it in any thread after the commit."""
        return self._store.submit_read(lambda c: self._reply(HubShelf(c), device, body))

    def _reply(self, shelf: HubShelf, device: str, body: AuditHead) -> None:
        try:
            message = self._answer(shelf, device, body)
        except (BadNoteError, LookupError) as error:
            log.warning("no answer for the audit log of %s: %s", device, error)
            return
        self._publish(format_topic(DownTopic(self._fleet, device, Down.WITNESS)), encode(message), False)

    def _answer(self, shelf: HubShelf, device: str, body: AuditHead) -> Witness:
        row = shelf.watched(device) or Watched(device, "", "", "")
        size = _size(body.note)
        seen = _size(row.note) if row.note else 0
        line = self._watching.cosigned(shelf, device, body.note, self._clock())
        keys = self._audit.keys
        ours = offer(shelf, keys.key.text(), body.seen)
        return Witness(
            key=keys.key.text(),
            witness_key=keys.witness_key.text(),
            note=ours.note if ours else "",
            old=ours.old if ours else 0,
            proof=note.encode_proof(ours.proof) if ours else (),
            size=size,
            line=line,
            want=seen if not line and not row.refused and seen < size else -1,
            refused=_sentence(row),
        )

    async def standing(self) -> dict[str, Any]:
        """How the hub's log stands with its witnesses, and theirs with the hub."""
        return await self._store.read(self._standing)

    def _standing(self, connection: Connection) -> dict[str, Any]:
        shelf = HubShelf(connection)
        newest, latest = shelf.newest(), shelf.witnessed()
        sealed = _size(newest) if newest else 0
        cosigned, names = shelf.cosigned_by_each(), _sites(connection)
        return {
            "origin": self._audit.keys.origin,
            "key": self._audit.keys.key.text(),
            "entries": shelf.last()[0],
            "sealed": sealed,
            "sealed_at": shelf.sealed_at(),
            "root": note.parse_checkpoint(note.parse_note(newest).text).root.hex() if newest else "",
            "witnesses": shelf.witnesses(sealed),
            "witnessed": latest,
            "witnesses_then": shelf.witnesses(latest),
            "fault": self._audit.fault.sentence if self._audit.fault else "",
            "sites": [_site(row, names.get(row.log, ""), cosigned) for row in shelf.all_watched()],
        }

    def trust_in(self, connection: Connection, device: str) -> bool:
        """Begin anew with the device's next checkpoint; whether it was known."""
        shelf = HubShelf(connection)
        known = shelf.watched(device) is not None
        shelf.forget_watched(device)
        return known


def _size(whole: str) -> int:
    return note.parse_checkpoint(note.parse_note(whole).text).size


def _sentence(row: Watched) -> str:
    return msgspec.json.decode(row.evidence, type=Evidence).sentence if row.refused and row.evidence else ""


def _sites(connection: Connection) -> dict[str, str]:
    """The site of each device."""
    return {str(id): str(site) for id, site in connection.execute(select(tables.devices.c.id, tables.devices.c.site))}  # noqa: A001


def _site(row: Watched, site: str, cosigned: Mapping[str, int]) -> dict[str, Any]:
    """A site's own log as this hub saw it last, and the newest of our checkpoints that the site signed."""
    return {
        "device": row.log,
        "site": site,
        "seen": _size(row.note) if row.note else 0,
        "at": row.at,
        "witnessed": cosigned.get(note.parse_key(row.key).name, 0) if row.key else 0,
        "refused": row.refused,
        "sentence": _sentence(row),
    }
