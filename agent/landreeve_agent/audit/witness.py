"""Mutual witnessing with the hub: our checkpoint goes up with what we saw of the hub's, the hub's comes down.

Asking first means that a hub never sends this to an agent that does not know it, and that a lost answer costs one
round.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import cached_property

import msgspec
from landreeve.audit import note
from landreeve.audit.note import BadNoteError
from landreeve.audit.sealing import Evidence, Verdict, Watching, offer
from landreeve.audit.shelf import Cosigned as Line
from landreeve.audit.witness import Grown, Offered, Refused
from landreeve.wire.messages import Audit, AuditHead, Cosigned, Event, Witness
from sqlite_utils import Database as Tables

from landreeve_agent.audit.log import SiteLog
from landreeve_agent.audit.shelf import SiteShelf
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.store.events import record
from landreeve_agent.store.stamps import stamp

logger = logging.getLogger(__name__)

HUB = "hub"


class Standing(msgspec.Struct, frozen=True):
    """How the two logs stand with each other, for people."""

    entries: int
    sealed: int
    witnessed: int
    hub_seen: int
    hub_refused: str = ""
    hub_sentence: str = ""
    refused_by_hub: str = ""
    root: str = ""
    sealed_at: str = ""
    fault: str = ""


class Mutual:
    """Seals the site's log, has it witnessed by the hub, and witnesses the hub's."""

    def __init__(
        self, log: SiteLog, outbox: Outbox, clock: Callable[[], datetime], is_member: Callable[[], bool] = lambda: True
    ) -> None:
        self._log = log
        self._outbox = outbox
        self._clock = clock
        self._is_member = is_member
        self._hub_says = ""
        self.latest = Standing(0, 0, 0, 0)

    @cached_property
    def _watching(self) -> Watching:
        return Watching(self._log.keys)

    async def tell(self) -> None:
        """Seal, and send the checkpoint up; the hub answers with its own.

        A box without a hub seals when it is asked to verify or export: nobody else would see its checkpoints.
        """
        now = self._clock()
        if self._is_member():
            await self._log.seal()
            await self._log.database.write(lambda tables: self._enqueue_head(tables, now, None))
        await self.standing()

    def _enqueue_head(self, tables: Tables, now: datetime, old: int | None) -> None:
        shelf = SiteShelf(tables)
        offered = offer(shelf, self._log.keys.key.text(), shelf.cosigned_by(HUB) if old is None else old)
        if offered is None:
            return
        hub = shelf.watched(HUB)
        head = AuditHead(
            key=offered.key,
            witness_key=self._log.keys.witness_key.text(),
            note=offered.note,
            old=offered.old,
            proof=note.encode_proof(offered.proof),
            seen=_size(hub.note) if hub else 0,
        )
        self._outbox.enqueue(tables, head, now)

    async def on_witness(self, message: Witness) -> None:
        """The hub's answer; bears repeats."""
        now = self._clock()
        await self._log.database.write(lambda tables: self._take(tables, message, now))
        await self.standing()

    def _take(self, tables: Tables, message: Witness, now: datetime) -> None:
        shelf = SiteShelf(tables)
        try:
            self._take_line(shelf, message, now)
            if message.note:
                proof = note.decode_proof(message.proof)
                offered = Offered(message.key, message.note, message.old, proof)
                self._take_verdict(tables, self._watching.judge(shelf, HUB, offered, now), now)
        except BadNoteError as error:
            logger.warning("the hub's answer about audit logs cannot be read: %s", error)
        if message.refused and message.refused != self._hub_says:
            self._tell_refused_by_hub(tables, message.refused, now)
        self._hub_says = message.refused
        if message.want >= 0:
            self._enqueue_head(tables, now, message.want)

    def _take_line(self, shelf: SiteShelf, message: Witness, now: datetime) -> None:
        """Keep the hub's signature under our checkpoint, if it is one and by the key it always had."""
        whole = shelf.note_of(message.size)
        if not message.line or not whole:
            return
        key, text = note.parse_key(message.witness_key), note.parse_note(whole).text
        pinned = shelf.witness_key(HUB)
        if pinned and key.text() != pinned:
            logger.warning("the hub witnesses with another key than before: not kept")
        elif note.is_valid(text, note.parse_line(message.line), key):
            shelf.add_cosigned(Line(message.size, HUB, key.text(), message.line, stamp(now)))

    def _take_verdict(self, tables: Tables, verdict: Verdict | None, now: datetime) -> None:
        match verdict:
            case Verdict(Grown(checkpoint=checkpoint), line):
                key = self._log.keys.witness_key.text()
                self._outbox.enqueue(tables, Cosigned(size=checkpoint.size, key=key, line=line), now)
            case Verdict(Refused() as refused, _, is_news) if is_news:
                self._raise(tables, refused, now)

    def _raise(self, tables: Tables, refused: Refused, now: datetime) -> None:
        """To the site's log, its audit log, and to the hub, where it is an incident: with both notes as evidence."""
        data = {"seen": refused.seen, "offered": refused.offered}
        event = Event(
            name="audit.refused",
            subject=HUB,
            cause=refused.cause,
            sentence=f"The hub's audit log is not the one this box has seen: {refused.sentence}",
            severity="error",
            data=data,
        )
        record(tables, event, now)
        self._outbox.enqueue(tables, event, now)
        act = Audit(
            actor="agent", action="audit.refuse", object=HUB, decision="denied", data={"cause": refused.cause, **data}
        )
        self._outbox.enqueue(tables, act, now)

    def _tell_refused_by_hub(self, tables: Tables, why: str, now: datetime) -> None:
        sentence = f"The hub does not recognise this box's audit log: {why}"
        event = Event(
            name="audit.refused_by_hub", subject="audit", cause="refused", sentence=sentence, severity="error"
        )
        record(tables, event, now)

    async def standing(self) -> Standing:
        """How the logs stand."""
        self.latest = await self._log.database.read(self._standing)
        return self.latest

    def _standing(self, tables: Tables) -> Standing:
        shelf = SiteShelf(tables)
        whole, hub = shelf.newest(), shelf.watched(HUB)
        evidence = msgspec.json.decode(hub.evidence, type=Evidence) if hub and hub.evidence else None
        return Standing(
            entries=shelf.last()[0],
            sealed=_size(whole),
            witnessed=shelf.cosigned_by(HUB),
            hub_seen=_size(hub.note) if hub else 0,
            hub_refused=hub.refused if hub else "",
            hub_sentence=evidence.sentence if evidence else "",
            refused_by_hub=self._hub_says,
            root=note.parse_checkpoint(note.parse_note(whole).text).root.hex() if whole else "",
            sealed_at=shelf.sealed_at(),
            fault=self._log.fault.sentence if self._log.fault else "",
        )

    async def trust(self, actor: str) -> None:
        """Begin anew with the hub's next checkpoint: somebody knows why its log is another one."""
        now = self._clock()

        def forget(tables: Tables) -> None:
            SiteShelf(tables).forget_watched(HUB)
            self._outbox.enqueue(tables, Audit(actor=actor, action="audit.trust", object=HUB, decision="allowed"), now)

        await self._log.database.write(forget)
        await self.standing()

    def doubts(self) -> tuple[str, ...]:
        """What people at the box should know about the logs."""
        latest, fault = self.latest, self._log.fault
        found = []
        if fault:
            found.append(f"This box's audit log is not as it was written: {fault.sentence}")
        if latest.hub_refused:
            found.append(f"The hub's audit log is not the one this box has seen: {latest.hub_sentence}")
        if latest.refused_by_hub:
            found.append(f"The hub does not recognise this box's audit log: {latest.refused_by_hub}")
        return tuple(found)


def _size(whole: str) -> int:
    return note.parse_checkpoint(note.parse_note(whole).text).size if whole else 0
