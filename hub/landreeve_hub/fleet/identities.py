"""What people do about who belongs to the fleet: approve, revoke, roll the authority. Each act is in the audit log
in the transaction that does it; what the broker and the servers have to be told follows."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding
from landreeve.trust.certs import describe, parse_all
from landreeve.wire.codec import encode
from landreeve.wire.messages import Presence
from landreeve.wire.topics import Down
from sqlalchemy import Connection, select

from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.errors import NotFoundError
from landreeve_hub.fleet import expiry, renewal, sessions, waiting, warden
from landreeve_hub.fleet.authority import Authority, RollError
from landreeve_hub.fleet.enrolment import Enrolled, Rules
from landreeve_hub.fleet.warden import Cut, Warden
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.store.database import Store
from landreeve_hub.store.tables import devices

log = logging.getLogger(__name__)
SHOWN = 20
EXPEL_WITHIN_S = 60.0
MOST_EXPELLED = 5
# So many are told at one look that they are alone, which a hub that has just started tells to everyone who is there.
MOST_TOLD_ALONE = 500
_PEM = Encoding.PEM


class UnknownNameError(NotFoundError, LookupError):
    """No device or site has that name."""


@dataclass
class Identities:
    """``reissue`` is awaited when the authorities changed: servers show new certificates and believe new ones."""

    store: Store
    authority: Authority
    warden: Warden
    publisher: Publisher
    audit: AuditLog
    clock: Callable[[], datetime]
    changed: Callable[[str], None]
    rules: Rules = field(default_factory=Rules)
    reissue: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    _told: dict[str, bool] = field(default_factory=dict)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)
    _spoke: set[str] = field(default_factory=set)
    _expelled: dict[str, list[float]] = field(default_factory=dict)
    _expelling: bool = False

    async def joined(self, device: Enrolled) -> None:
        """A box has become a device: the broker must know it before it calls, and the one before it is out."""
        await self.warden.admit()
        if device.replaced:
            await self.warden.throw_out([device.replaced])
            await self.order(device.device)
        self.changed("fleet")
        log.info("site %s enrolled as %s", device.site, device.device)

    async def decide(self, device: str, *, approved: bool, by: str) -> dict[str, Any]:
        """Let a waiting box in, or turn it away. `landreeve_hub.fleet.waiting.NotWaitingError`."""
        now = self.clock()

        def write(connection: Connection) -> dict[str, Any]:
            found = waiting.decide_in(connection, device, approved=approved, by=by, now=now)
            data = {"site": found["site"], "fingerprint": found["fingerprint"], "replaces": found["replaces"]}
            action = "enrolment.approve" if approved else "enrolment.deny"
            self.audit.record_in(connection, now, Act(by, action, device, data=data))
            return {name: value for name, value in found.items() if name != "token"}

        decided = await self.store.write(write)
        self.changed("fleet")
        return decided

    async def revoke(self, name: str, *, by: str, reason: str) -> Cut:
        """Throw a device out, by id or site name; a second time cuts it again. `UnknownNameError`."""
        now = self.clock()

        def write(connection: Connection) -> str:
            device = warden.find_in(connection, name)
            if device is None:
                raise UnknownNameError(f"There is no device or site {name[:64]!r}.")
            warden.revoke_in(connection, device, now, "revoked")
            self.audit.record_in(connection, now, Act(by, "device.revoke", device, data={"reason": reason}))
            return device

        device = await self.store.write(write)
        (cut,) = await self.warden.throw_out([device])
        self.changed("fleet")
        return cut

    async def status(self) -> dict[str, Any]:
        """The authorities in force and how many devices use a certificate of the newest."""
        issuers = self.authority.issuers()
        moved = await self.store.read(lambda connection: renewal.progress(connection, issuers[-1]))
        signed, expires = self.authority.crl_times()
        described = [describe(one.public_bytes(_PEM)) for one in parse_all(self.authority.trusted_pem.encode())]
        behind = [one for one in moved if not one.moved]
        return {
            "rolling": self.authority.rolling,
            "authorities": [
                {"name": d.common_name, "fingerprint": d.fingerprint, "expires": d.not_after.isoformat()}
                for d in described
            ],
            "devices": len(moved),
            "moved": len(moved) - len(behind),
            "behind": [msgspec.to_builtins(one) for one in behind[:SHOWN]],
            "crl": {"signed": signed.isoformat(), "expires": expires.isoformat()},
        }

    async def roll(self, by: str) -> dict[str, Any]:
        """Begin a new authority; devices are told to trust both and renew by themselves. `RollError`."""
        async with self._one:
            now = self.clock()
            self.authority.roll(now)
            await self.audit.record(now, Act(by, "authority.roll", self.authority.issuers()[-1]))
            await self._spread()
        return await self.status()

    async def finish(self, by: str, *, force: bool) -> dict[str, Any]:
        """Drop the former authority. `RollError` while devices would be stranded, unless forced."""
        async with self._one:
            now, newest = self.clock(), self.authority.issuers()[-1]
            moved = await self.store.read(lambda connection: renewal.progress(connection, newest))
            behind = [one.site for one in moved if not one.moved]
            if behind and self.authority.rolling and not force:
                names = ", ".join(behind[:SHOWN]) + (" and more" if len(behind) > SHOWN else "")
                raise RollError(
                    f"{len(behind)} of {len(moved)} devices still use the former authority and would be stranded: "
                    f"{names}. Wait for them, revoke them, or force it; stranded ones must join again"
                )
            self.authority.finish(now)
            data = {"stranded": behind[:SHOWN]} if behind else {}
            await self.audit.record(now, Act(by, "authority.finish", newest, data=data))
            await self._spread()
        return await self.status()

    async def _spread(self) -> None:
        """Tell everyone whom to trust now: the servers first, then the devices."""
        await self.warden.renew_list()
        for tell in self.reissue:
            await tell()
        for device in await self.store.read(_everyone):
            await self.order(device)
        self.changed("fleet")

    async def spoke(self, names: Iterable[str]) -> None:
        """These may not speak and did. A broker that reads its revocation list late lets a device in once more after
        it was cut: whoever was revoked is cut again, a few times a minute at most, since elsewhere nobody reads it."""
        self._spoke.update(names)
        if self._expelling:
            return
        self._expelling = True
        try:
            while self._spoke:
                heard, self._spoke = self._spoke, set()
                out = await self.store.read(lambda connection: _revoked_of(connection, heard))  # noqa: B023  awaited
                if due := [name for name in out if self._is_due(name)]:
                    await self.warden.throw_out(due)
        finally:
            self._expelling = False

    def _is_due(self, name: str) -> bool:
        now = time.monotonic()
        recent = [at for at in self._expelled.get(name, ()) if now - at < EXPEL_WITHIN_S]
        if due := len(recent) < MOST_EXPELLED:
            recent.append(now)
        self._expelled[name] = recent
        return due

    async def watch(self, now: datetime) -> None:
        """Tell identities that are doubled, and those that no longer are, and see to certificates that end soon."""
        before = frozenset(self._told)
        told = await self.store.write(lambda connection: sessions.settle_in(connection, now, before))
        alone = [device for device, presence in told.items() if device not in before and not presence.doubled]
        for device in alone[:MOST_TOLD_ALONE]:
            self._tell(device, told[device])
            self.warden.tell(device, Down.PRESENCE, b"")  # heard or queued by now: the broker need not keep it
        for device, presence in told.items():
            if (device in before or presence.doubled) and self._told.get(device) != presence.doubled:
                self._tell(device, presence)
                self.changed("fleet")

    def _tell(self, device: str, presence: Presence) -> None:
        self.warden.tell(device, Down.PRESENCE, encode(presence))
        self._told[device] = presence.doubled

    async def watch_certificates(self, now: datetime) -> None:
        """Open and close incidents about certificates that end soon."""
        days = self.rules.recover_days
        await self.store.write(lambda connection: expiry.watch_in(connection, now, days))

    async def order(self, device: str) -> None:
        """Bring the device's document up to date; what cannot be signed is logged, the others go on."""
        try:
            await self.publisher.publish_device(device)
        except (SigningError, LookupError) as error:
            log.warning("the document of %s is not renewed: %s", device, error)


def _revoked_of(connection: Connection, names: Collection[str]) -> list[str]:
    query = select(devices.c.id).where(devices.c.id.in_(names), devices.c.revoked).order_by(devices.c.id)
    return list(connection.execute(query).scalars())


def _everyone(connection: Connection) -> list[str]:
    query = select(devices.c.id).where(~devices.c.revoked).order_by(devices.c.id)
    return list(connection.execute(query).scalars())
