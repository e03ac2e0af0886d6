"""Being part of a fleet: everything that needs the hub, present once the box has joined one.

A box that has not joined works alone; joining while it runs is noticed within seconds, without a restart.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from landreeve.blobs.store import BlobStore
from landreeve.trust import certs, expiry
from landreeve.trust.verdict import Believed, Rejected
from landreeve.wire.messages import Command, DeviceState, Event, ModelState, Presence, SignedDesired, Want, Witness

from landreeve_agent.config import LinkSettings, StateFolder
from landreeve_agent.console.status import AgentStatus, HubView, ModelView
from landreeve_agent.console.verdict import Level
from landreeve_agent.link.contact import Contact
from landreeve_agent.link.identity import Identity, keys_folder, load_identity
from landreeve_agent.link.meter import Meter
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.session import Handlers, Options, Session
from landreeve_agent.link.transfer import OPEN, Fetcher, Gate, Progress, Say, unheard
from landreeve_agent.link.upload import Uploader
from landreeve_agent.store.stamps import stamp
from landreeve_agent.version import BUILD_TIME

if TYPE_CHECKING:
    from landreeve.trust.verify import DesiredVerifier

    from landreeve_agent.link.renewal import Renewer

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
STATE_EVERY_S = 1.0
LAST_DAYS = 7.0


@dataclass
class _Joined:
    identity: Identity
    session: Session
    fetcher: Fetcher
    uploader: Uploader
    verifier: "DesiredVerifier"
    renewer: "Renewer"


@dataclass
class Membership:
    """The joined side. As the update runner's fetcher and verifier it waits for, or asks, the real ones.

    ``status`` gives the newest status document, from which the retained device state is made.
    """

    state: StateFolder
    outbox: Outbox
    blobs: BlobStore
    settings: LinkSettings
    clock: Callable[[], datetime]
    status: Callable[[], AgentStatus | None]
    on_command: Callable[[Command], Awaitable[None]]
    on_desired: Callable[[SignedDesired], Awaitable[None]]
    on_joined: Callable[[], None]
    on_event: Callable[[Event], None] = lambda _event: None
    gate: Gate = OPEN
    meter: Meter = field(default_factory=Meter)
    on_witness: Callable[[Witness], Awaitable[None]] | None = None
    _joined: _Joined | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _alone: asyncio.Event = field(default_factory=asyncio.Event)
    _doubled: str = ""
    _withheld: SignedDesired | None = None
    _taking: "asyncio.Future[None] | None" = None
    _run: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def identity(self) -> Identity | None:
        """Who this box is in its fleet, or None."""
        return self._joined.identity if self._joined else None

    def look(self) -> bool:
        """Become a member when there is an identity on disk; whether the box is one now."""
        if not self._doubled:
            self._alone.set()
        identity = load_identity(self.state.root) if self._joined is None else None
        if identity is not None:
            self._joined = self._build(identity)
            self._ready.set()
            logger.info("this box is %s of fleet %s", identity.device, identity.fleet)
        return self._joined is not None

    async def run(self) -> None:
        """Keep the link up, once there is one."""
        if self._joined is None:
            await self._wait_for_identity()
            self.on_joined()
        assert self._joined is not None  # noqa: S101 - look() said so
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._joined.session.run())
            tasks.create_task(self._joined.uploader.run())
            tasks.create_task(self._watch_state(self._joined.session))
            tasks.create_task(self._joined.renewer.run())

    async def _wait_for_identity(self) -> None:
        while not self.look():  # noqa: ASYNC110 - another process writes the file
            await asyncio.sleep(LOOK_EVERY_S)

    async def fetch(
        self,
        digest: str,
        size: int,
        block_digests: tuple[str, ...] | None = None,
        progress: Progress | None = None,
        *,
        bases: Sequence[str] = (),
        say: Say = unheard,
    ) -> Path:
        """The artifact's file; waits for as long as there is no hub."""
        await self._ready.wait()
        await self._alone.wait()
        assert self._joined is not None  # noqa: S101 - set before the event
        return await self._joined.fetcher.fetch(digest, size, block_digests, progress, bases=bases, say=say)

    def under_way(self) -> frozenset[str]:
        """Artifacts that arrive or leave right now."""
        if self._joined is None:
            return frozenset()
        return self._joined.fetcher.under_way() | self._joined.uploader.under_way()

    def verify(self, signed: SignedDesired, now: datetime) -> Believed | Rejected:
        """Believe a document or say why not; only a member gets one."""
        if self._joined is None:
            raise RuntimeError("a signed document without a hub: the link must be built before it is used")
        return self._joined.verifier.verify(signed, now)

    @property
    def doubled(self) -> str:
        """Why this box updates nothing: another one speaks under its name, as the hub hears it. Empty when none
        does."""
        return self._doubled

    async def take_order(self, signed: SignedDesired) -> None:
        """Hand a document on, unless another box uses this one's name: then it is kept until that is over, since
        neither of the two can know for which of them it was meant."""
        if self._doubled:
            self._withheld = signed
        else:
            await self.on_desired(signed)

    def _on_presence(self, presence: Presence) -> None:
        sentence = (presence.sentence or "Another box uses this one's identity.") if presence.doubled else ""
        if sentence and not self._doubled:
            logger.error("%s", sentence)
            event = Event(name="identity.doubled", subject="identity", cause="two_sessions", sentence=sentence)
            self.on_event(msgspec.structs.replace(event, severity="error"))
        freed, self._doubled = bool(self._doubled) and not sentence, sentence
        if sentence:
            self._alone.clear()
            return
        if freed:
            logger.info("this box alone uses its identity again")
        self._alone.set()
        kept, self._withheld = self._withheld, None
        if kept is not None:
            self._taking = asyncio.ensure_future(self.on_desired(kept))

    def troubles(self) -> tuple[tuple[Level, str], ...]:
        """What people on the site should know about this box's identity."""
        found: list[tuple[Level, str]] = [("error", self._doubled)] if self._doubled else []
        problem, days = self.renewal_problem, self._certificate_days()
        if problem and days is not None:
            level: Level = "error" if days < LAST_DAYS else "warning"
            found.append((level, f"The certificate ends in {days:.0f} days and is not renewed: {problem}"))
        return tuple(found)

    @property
    def renewal_problem(self) -> str:
        """What stands in the way of the certificate's renewal now; empty when nothing does."""
        return self._joined.renewer.problem if self._joined else ""

    def trust(self, authorities: tuple[str, ...]) -> None:
        """Trust whom the hub's believed document names, and move to the newest of them."""
        if self._joined is not None:
            self._joined.renewer.trust(authorities)

    def limit_rate(self, facts_per_s: float | None) -> None:
        """Send at most that many facts a second, as the hub asked."""
        if self._joined is not None:
            self._joined.session.limit_rate(facts_per_s)

    @property
    def contact(self) -> Contact | None:
        """How the link stands; None before the box has joined."""
        return self._joined.session.contact if self._joined else None

    def view(self, waiting: int) -> HubView:
        """The link in the status document."""
        if self._joined is None:
            return HubView(state="not_joined", waiting=waiting)
        contact, now = self._joined.session.contact, self.clock()
        lost = not contact.connected and bool(contact.problem)
        return HubView(
            state="unreachable" if lost else "waiting" if waiting or not contact.connected else "in_sync",
            waiting=waiting,
            last_contact=stamp(contact.last_contact) if contact.last_contact else None,
            certificate_days=self._certificate_days(),
            metadata_days=self._metadata_days(),
            clock=self._joined.verifier.clock_problem(now),
            clock_ahead_s=contact.clock_ahead_s(now),
            problem=contact.problem if lost else "",
            bytes_up=self.meter.up,
            bytes_down=self.meter.down,
        )

    def certificate_expires(self) -> str:
        """When the device's certificate ends, RFC 3339; empty without one."""
        if self._joined is None or not self.state.certificate.exists():
            return ""
        return stamp(certs.describe(self.state.certificate.read_bytes(), str(self.state.certificate)).not_after)

    def _build(self, identity: Identity) -> _Joined:
        # TUF takes 11 MB with its cryptography: a box that works alone does without.
        from landreeve.trust.verify import DesiredVerifier

        from landreeve_agent.link.keyring import Keyring
        from landreeve_agent.link.renewal import Renewer

        handlers = Handlers(self.take_order, self.on_command, self._on_want, self.on_witness)
        session = Session(
            identity,
            self.state.root / "keys",
            self.outbox,
            handlers,
            self._device_state,
            clock=self.clock,
            options=Options(reconnect_jitter_s=self.settings.reconnect_jitter_s),
            meter=self.meter,
        )
        session.on_presence = self._on_presence
        renewer = Renewer(
            Keyring(keys_folder(self.state.root)), identity.hub_url, identity.site, session.prove, self.on_event,
            self.clock, self.settings.renew_look_s, self.settings.renew_jitter_s,
        )  # fmt: skip
        return _Joined(
            identity,
            session,
            Fetcher(session, self.blobs, tell=self.on_event, gate=self.gate),
            Uploader(session, self.blobs, gate=self.gate),
            DesiredVerifier(self.state.trust, identity.device, BUILD_TIME),
            renewer,
        )

    def _on_want(self, digest: str, want: Want) -> None:
        if self._joined is not None:
            self._joined.uploader.on_want(digest, want)

    async def _watch_state(self, session: Session) -> None:
        told: tuple[object, ...] = ()
        while True:
            state = self._device_state()
            now = (state.generation, state.models, state.certificate_serial)
            if now != told:
                session.state_changed()
                told = now
            await asyncio.sleep(STATE_EVERY_S)

    def _device_state(self) -> DeviceState:
        """``session``, ``online`` and ``outbox`` are filled in by the session itself."""
        status, contact = self.status(), self.contact
        ahead_s = contact.clock_ahead_s(self.clock()) if contact else None
        models = tuple(_model_state(model) for model in status.models) if status else ()
        return DeviceState(
            session=0,
            online=True,
            at=stamp(self.clock()),
            generation=status.generation if status else 0,
            document=status.document if status else "",
            models=models,
            certificate_days=self._certificate_days() or 0.0,
            metadata_days=self._metadata_days(),
            clock_ahead_s=None if ahead_s is None else round(ahead_s, 1),
            run=self._run,
            certificate_serial=self._certificate_serial(),
        )

    def _certificate_serial(self) -> str:
        try:
            return certs.describe(self.state.certificate.read_bytes()).serial
        except (OSError, certs.BadCertificateError):
            return ""

    def _metadata_days(self) -> float | None:
        days = expiry.days_left(self.state.trust, self.clock())
        return None if days is None else round(days, 2)

    def _certificate_days(self) -> float | None:
        try:
            return round(certs.days_left(self.state.certificate, self.clock()), 2)
        except (OSError, certs.BadCertificateError):
            return None  # the link itself says what is wrong with the keys


def _model_state(model: ModelView) -> ModelState:
    return ModelState(
        model=model.name,
        version=model.version,
        release=model.release,
        state=model.update.state if model.update else model.health,
        wanted=model.wanted,
        used=model.used,
        reason=model.reason,
        keeps=model.update.keeps if model.update else (),
    )
