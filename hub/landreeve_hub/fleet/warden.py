"""Throwing a device out: refused by the tables first, then by the revocation list, then by the broker, at once.

mosquitto reads its revocation list again on SIGHUP, but for new connections only: live sessions stay. It replaces
every client id by the certificate's name, so the hub, being the authority, connects once in the device's name with
a certificate that is good for minutes: the broker gives the session to the newcomer and drops the device. NATS
drops the sessions of a user that is no longer listed.
"""

import asyncio
import logging
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import paho.mqtt.client as mqtt
from landreeve.trust.tls import ClosingSocket
from landreeve.wire.topics import Down, DownTopic, Up, UpTopic, format_topic
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import Connection, select

from landreeve_hub.broker.child import Broker, Kind
from landreeve_hub.fleet import incarnation, register
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.inventory import guests
from landreeve_hub.ingest.line import Address
from landreeve_hub.store.database import Store
from landreeve_hub.store.tables import devices

log = logging.getLogger(__name__)
TAKE_OVER_S = 3.0
# mosquitto looks for a signal about ten times a second. A device that slips in again meanwhile is met by the second
# round, when the list is surely read.
ROUNDS_S = (0.25, 1.0)
Publish = Callable[[str, bytes, bool], None]


@dataclass(frozen=True, slots=True)
class Cut:
    """What became of a revoked device's session. ``seconds`` until the broker had dropped it, None where the broker
    could not be asked: then only the hub's own list refuses what it sends, and ``sentence`` says what to do."""

    device: str
    seconds: float | None
    sentence: str


class Warden:
    """Keeps out who was thrown out. ``broker`` is None where one runs elsewhere."""

    def __init__(  # noqa: PLR0917  wiring
        self,
        store: Store,
        authority: Authority,
        broker: Broker | None,
        address: Address,
        fleet: str,
        publish: Publish,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._authority = authority
        self._broker = broker
        self._address = address
        self._fleet = fleet
        self._publish = publish
        self._clock = clock
        self._one = asyncio.Lock()

    async def renew_list(self) -> None:
        """Sign the revocation lists anew and have the broker read them."""
        async with self._one:
            await self._write_list()
            if self._broker is not None:
                self._broker.reload()

    async def admit(self) -> None:
        """Tell the broker who may come in now; nothing happens when it knows."""
        if self._broker is not None:
            await self._broker.admit(await self._store.read(guests))

    async def throw_out(self, names: Iterable[str]) -> tuple[Cut, ...]:
        """Cut the sessions of devices that the tables refuse already, and forget what the broker retains of them."""
        names = tuple(names)
        began = time.monotonic()
        async with self._one:
            await self._write_list()
            await self.admit()
            if self._broker is not None and self._broker.kind is Kind.NATS:
                cuts = tuple(Cut(name, time.monotonic() - began, "The broker dropped its session.") for name in names)
            else:
                cuts = await self._take_over(names, began)
            self._purge(names)
        for cut in cuts:
            log.warning("%s is out: %s", cut.device, cut.sentence)
        return cuts

    async def _take_over(self, names: tuple[str, ...], began: float) -> tuple[Cut, ...]:
        took: dict[str, float] = {}
        for pause_s in ROUNDS_S:
            await asyncio.sleep(pause_s)
            for name in names:
                if await asyncio.to_thread(self._stand_in, name):
                    took.setdefault(name, time.monotonic() - began)
        return tuple(_told(name, took.get(name), own=self._broker is not None) for name in names)

    def _stand_in(self, name: str) -> bool:
        """Connect once in the device's name, which ends its session; whether the broker let us."""
        key, certificate = self._authority.stand_in(name, self._clock())
        try:
            with tempfile.TemporaryDirectory(dir=self._authority.ca_path.parent) as folder:
                pem = Path(folder) / "stand-in.pem"
                pem.touch(mode=0o600)
                pem.write_bytes(key + certificate)
                context = ssl.create_default_context(cafile=str(self._authority.trust_path))
                context.load_cert_chain(pem)
                context.sslsocket_class = ClosingSocket
            return _connect_once(self._address, context, name)
        except (OSError, ValueError) as error:
            log.warning("the session of %s could not be taken over: %s", name, error)
            return False

    async def _write_list(self) -> None:
        now = self._clock()
        revoked = await self._store.read(lambda connection: register.revoked(connection, now))
        await asyncio.to_thread(self._authority.write_crl, revoked, now)

    def tell(self, device: str, channel: Down, payload: bytes) -> None:
        """Say something to a device, retained."""
        self._publish(format_topic(DownTopic(self._fleet, device, channel)), payload, True)

    def _purge(self, names: Iterable[str]) -> None:
        for name in names:
            self.tell(name, Down.DESIRED, b"")
            self.tell(name, Down.PRESENCE, b"")
            self._publish(format_topic(UpTopic(self._fleet, name, Up.STATE)), b"", True)


def revoke_in(connection: Connection, device: str, now: datetime, reason: str) -> bool:
    """The part of a revocation that lies in the tables: from its commit on nothing of the device counts."""
    return incarnation.end_in(connection, device, now, reason)


def find_in(connection: Connection, name: str) -> str | None:
    """The id of a device by id or site name, revoked or not."""
    where = (devices.c.id == name) | (devices.c.site == name)
    return connection.execute(select(devices.c.id).where(where)).scalar_one_or_none()


def _told(name: str, seconds: float | None, *, own: bool) -> Cut:
    if seconds is not None:
        return Cut(name, seconds, "The broker dropped its session.")
    where = "the broker" if own else "the broker, which runs elsewhere,"
    fix = "give it /enrol/v1/crl of this hub and remove the device there" if not own else "restart the hub"
    return Cut(name, None, f"The hub takes nothing from it any more, but {where} could not be told; {fix}.")


def _connect_once(address: Address, context: ssl.SSLContext, name: str) -> bool:
    """A clean session, so that what the broker queued for the device goes too."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=True, reconnect_on_failure=False)
    client.tls_set_context(context)
    client.connect(address.host, address.port, keepalive=10)
    deadline = time.monotonic() + TAKE_OVER_S
    while not client.is_connected() and time.monotonic() < deadline:
        if client.loop(timeout=0.1) != mqtt.MQTT_ERR_SUCCESS:
            return False
    connected = client.is_connected()
    client.disconnect()
    client.loop(timeout=0.1)
    return connected
