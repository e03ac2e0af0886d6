"""The hub of a simulated fleet: its real store, ingest, rollout runner, publisher, incidents and audit log, wired as
`landreeve_hub.rooms` does. Only the signatures are left out, and the broker is the simulation's.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from landreeve.wire.codec import decode, encode
from landreeve.wire.messages import Ack, Audit, Presence, SignedDesired
from landreeve_hub.access.identity import Person
from landreeve_hub.access.roles import Role
from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.fleet import sessions
from landreeve_hub.incidents.incidents import Incidents, IncidentWatch
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import Arrival, commit_batch
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.signing import keys
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from sqlalchemy import Connection, insert, update

from tests.fleet.whole.clockwork import HubKilledError, MemoryStore

FLEET = "demo"
BYTES = 100
ANN, BOB = Person("ann", Role.ADMIN), Person("bob", Role.APPROVER)
_TIMESTAMP = (
    '{"signatures":[],"signed":{"_type":"timestamp","spec_version":"1.0.31","expires":"2199-01-01T00:00:00Z",'
    '"version":%d,"meta":{"snapshot.json":{"version":1}}}}'
)


class _Director:
    def sign(self, _device: str, _desired: Any, _lengths: Any, _now: datetime, version: int = 0) -> dict[str, str]:
        return {"timestamp.json": _TIMESTAMP % version}

    def roots(self) -> dict[str, str]:
        return {}


class _Targets:
    def refresh(self, _now: datetime) -> None: ...
    def releases(self) -> dict[str, int]:
        return {}

    def metadata(self, _releases: Any) -> dict[str, str]:
        return {}


@cache
def _keys() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="landreeve-fleet-"))
    keys.init(folder, datetime.fromisoformat("2026-03-01T00:00:00Z"))
    return folder / "keys"


@dataclass
class Doors:
    """Where the hub speaks to: ``publish`` is the broker, ``ack`` and ``presence`` the devices."""

    clock: Callable[[], datetime]
    publish: Callable[[str, SignedDesired], None]
    ack: Callable[[str, Ack], None]
    presence: Callable[[str, Presence], None]


@dataclass
class Office:
    """One life of the hub's disk; `build` is a process that begins on it."""

    doors: Doors
    store: MemoryStore = field(default_factory=MemoryStore)
    arrivals: list[Arrival] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> None:
        self.told: set[str] = set()
        self.incidents = Incidents()
        publisher = Publisher(self.store, _Director(), _Targets(), self._publish, self.doors.clock)  # type: ignore[arg-type]
        self.publisher = publisher
        self.audit = AuditLog(self.store, _keys())
        self.runner = RolloutRunner(self.store, publisher, self.incidents, self.audit)
        watch = IncidentWatch(self.incidents, self.doors.clock)
        chains = standard_appliers(self._record)

        def chain(first: Any) -> Any:
            def apply(connection: Connection, device: str, fact: Any) -> None:
                first(connection, device, fact)
                watch.apply(connection, device, fact)

            return apply

        self.appliers = {kind: chain(one) for kind, one in chains.items()}

    def _record(self, connection: Connection, device: str, fact: Any) -> None:
        if isinstance(fact.body, Audit):
            act = Act(f"site:{device}:{fact.body.actor}", fact.body.action, fact.body.object, fact.body.decision, {})
            self.audit.record_in(connection, self.doors.clock(), act)

    def _publish(self, topic: str, payload: bytes, _retain: bool) -> None:
        self.doors.publish(topic.split("/")[-2], decode(payload, SignedDesired))

    def reborn(self, image: bytes) -> None:
        """Another process on this disk; what was in memory is gone."""
        self.store.close()
        self.store = MemoryStore(image)
        self.build()

    # --- what it does ---

    async def listen(self) -> None:
        """Commit what has arrived; only then is anybody told."""
        taken, self.arrivals = self.arrivals, []
        if not taken:
            return
        now = self.doors.clock()
        try:
            done = await self.store.write(lambda c: commit_batch(c, taken, (), self.appliers, now))
        except HubKilledError:
            self.arrivals = []  # the broker's queue for this session is gone with it; who was not told sends again
            raise
        for device, ack in done.acks:
            self.doors.ack(device, ack)

    async def settle(self) -> None:
        now = self.doors.clock()
        before = frozenset(self.told)
        told = await self.store.write(lambda c: sessions.settle_in(c, now, before))
        self.told |= told.keys()
        for device, presence in told.items():
            self.doors.presence(device, presence)

    # --- its registers ---

    def enrol(self, name: str, labels: dict[str, str]) -> None:
        row = {"id": name, "fleet": FLEET, "site": name, "labels": labels, "enrolled": rfc3339(self.doors.clock())}

        def keep(connection: Connection) -> None:
            known = connection.execute(tables.devices.select().where(tables.devices.c.id == name)).first()
            if known is None:
                connection.execute(insert(tables.devices).values(row))

        self.put(keep)

    def revoke(self, name: str) -> None:
        self.put(lambda c: c.execute(update(tables.devices).where(tables.devices.c.id == name).values(revoked=True)))

    def hold(self, digest: str, model: str, version: str, component: str) -> None:
        """A release that somebody has approved."""
        config = {"component": component} if component != "model" else {}
        row = {
            "digest": digest, "model": model, "version": version, "state": "approved", "manifest_bytes": BYTES,
            "config": config,
        }  # fmt: skip
        self.put(lambda c: c.execute(insert(tables.releases).values(row)))

    def assign(self, device: str, model: str, digest: str, version: str) -> None:
        row = {"device": device, "model": model, "digest": digest, "version": version, "rollout": "r-000000"}
        row |= {"action": "install", "probation": {"max_s": 7200.0}, "schedule": {}, "strategy": {}, "follows": ""}
        self.put(lambda c: c.execute(insert(tables.assignments).values(row)))

    def put(self, work: Callable[[Connection], Any]) -> None:
        """Write at once, without a chance to die."""
        with self.store._held.begin():
            work(self.store._held)

    def rows(self, query: Any) -> list[Any]:
        return self.store.look(lambda c: list(c.execute(query)))


def state_arrival(device: str, state: Any, *, retained: bool = False) -> Arrival:
    return Arrival(device, encode(state), is_state=True, retained=retained)
