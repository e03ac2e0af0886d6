"""Who takes another's session at a broker that cannot bind client ids to certificates: NATS, told by its own monitor.

NATS keeps sessions by account and client id alone, so a device that knows another's id ends that one's connection (and
reads nothing by it). Ids have a random part of 64 bits, so whoever knows one has seen inside the other box or the hub:
that is worth a person's look, and the broker knows both certificates. Source: nats-server's connection details
(``/connz``), https://docs.nats.io/running-a-nats-service/nats_admin/monitoring
"""

import asyncio
import re
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, select

from landreeve_hub.broker.plan import PROBES
from landreeve_hub.incidents.accusing import Accusations
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import CROWDS, Raise, taken_session
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

ASK_S = 5.0
NEWEST = 256
MOST_EACH = 8
"""Connections of one identity; a box has one, for a moment two."""
SPARE = 32
MOST_LISTED = 100_000
DUPLICATE = "Duplicate Client ID"
T = TypeVar("T")


class Connected(msgspec.Struct, frozen=True, kw_only=True):
    """One connection of ``/connz``, of this moment or closed."""

    authorized_user: str = ""
    mqtt_client: str = ""
    reason: str = ""
    stop: str = ""

    @property
    def name(self) -> str:
        """The common name of its certificate."""
        return self.authorized_user.removeprefix("CN=")


class _Totals(msgspec.Struct, frozen=True, kw_only=True):
    connections: int = 0


class _Connections(msgspec.Struct, frozen=True, kw_only=True):
    connections: tuple[Connected, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class Takeover:
    """``thief`` came under a client id of ``victim``, both by the names in their certificates."""

    victim: str
    thief: str


class Monitored(Protocol):
    """A broker the hub runs (`landreeve_hub.broker.child.Broker`)."""

    @property
    def monitor(self) -> str: ...
    @property
    def expected(self) -> int: ...


def takeovers(client_id: str, users: Iterable[str]) -> list[Takeover]:
    """Who came under a client id that is another's. Pure; ids of the hub and its agents are a name and 16 hex digits.

    >>> takeovers("d-one-00112233445566ff", ["d-one", "d-two"])
    [Takeover(victim='d-one', thief='d-two')]
    """
    owner = re.fullmatch(r"(.+)-[0-9a-f]{16}", client_id)
    if owner is None:
        return []
    strangers = sorted(set(users) - {owner[1], "", *PROBES})
    return [Takeover(owner[1], stranger) for stranger in strangers]


def crowds(users: Iterable[str]) -> dict[str, str]:
    """Who has more connections open than anybody needs, as `landreeve_hub.incidents.rules` names it. Pure."""
    return {name: CROWDS for name, count in Counter(users).items() if name and count > MOST_EACH}


class Takeovers:
    """Looks at the broker's monitor; each takeover, and each crowd, is an incident. Nothing happens where there is no
    monitor."""

    def __init__(self, broker: Monitored, store: Store, incidents: Incidents, accusations: Accusations) -> None:
        self._broker = broker
        self._store = store
        self._incidents = incidents
        self._accusations = accusations
        self._newest = ""

    async def look(self, now: datetime) -> None:
        """Open an incident for each takeover since the last look, and for who has many connections."""
        writing = self._accusations.tell(await asyncio.to_thread(self.crowds))
        if writing is not None:
            await asyncio.wrap_future(writing)
        if found := await asyncio.to_thread(self.found):
            await self._store.write(lambda connection: self._record(connection, now, found))

    def found(self) -> list[Takeover]:
        """Takeovers since the last look. Blocking."""
        monitor = self._broker.monitor
        if not monitor:
            return []
        try:
            return self._found(monitor)
        except OSError:  # it is being started again: its next life is looked at
            return []

    def crowds(self) -> dict[str, str]:
        """Who has too many connections. Blocking; asks for all of them only when there are more than expected."""
        monitor = self._broker.monitor
        try:
            if not monitor or _asked(monitor, "varz", _Totals).connections <= self._broker.expected + SPARE:
                return {}
            return crowds(one.name for one in _connections(monitor, state="open", limit=MOST_LISTED))
        except OSError:
            return {}

    def _found(self, monitor: str) -> list[Takeover]:
        closed = _connections(monitor, state="closed", sort="stop", limit=NEWEST)
        fresh = [one for one in closed if one.stop > self._newest]
        self._newest = max([self._newest, *(one.stop for one in fresh)])
        taken = {one.mqtt_client for one in fresh if one.reason == DUPLICATE}
        return sorted({each for client in taken for each in self._who(monitor, client)})

    def _who(self, monitor: str, client_id: str) -> list[Takeover]:
        held = _connections(monitor, state="all", mqtt_client=client_id)
        return takeovers(client_id, (one.name for one in held if one.mqtt_client == client_id))

    def _record(self, connection: Connection, now: datetime, found: Iterable[Takeover]) -> None:
        for each in found:
            self._incidents.open_in(connection, now, _raised(connection, each))


def _raised(connection: Connection, takeover: Takeover) -> Raise:
    devices = tables.devices
    query = select(devices.c.id, devices.c.site).where(devices.c.id.in_((takeover.victim, takeover.thief)))
    sites = {device: site or device for device, site in connection.execute(query)}
    victim, thief = ((name, sites.get(name, name)) for name in (takeover.victim, takeover.thief))
    return taken_session(victim, thief)


def _connections(monitor: str, **asked: Any) -> tuple[Connected, ...]:
    return _asked(monitor, f"connz?{urllib.parse.urlencode({'auth': 1, **asked})}", _Connections).connections


def _asked(monitor: str, what: str, answer: type[T]) -> T:
    with urllib.request.urlopen(f"{monitor}/{what}", timeout=ASK_S) as said:  # noqa: S310 - our own child's
        return msgspec.json.decode(said.read(), type=answer)
