"""A whole hub but for its broker: real rooms over a real store, for tests of all that is asked of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from landreeve.blobs.codec import Codec
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature
from landreeve_hub.access import tokens, users
from landreeve_hub.access.roles import Role
from landreeve_hub.api.app import build
from landreeve_hub.api.services import Services
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.audit.witnesses import Witnesses
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.exchange.archive import write_archive
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.identities import Identities
from landreeve_hub.fleet.warden import Warden
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.ingest.line import Address
from landreeve_hub.learning.commands import Commands
from landreeve_hub.registry.garbage import Collector
from landreeve_hub.registry.needless import HOUR_S, Keep
from landreeve_hub.registry.releases import Registry
from landreeve_hub.rollout.live import Baselines, no_baseline
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.signing import keys
from landreeve_hub.signing.desk import KeyDesk
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import insert, update

KEEP = Keep(withdrawn_s=3 * HOUR_S, orphans_s=HOUR_S)
URL = "http://127.0.0.1"
SITES = {"d-1": "EWR", "d-2": "JFK", "d-3": "LGA"}


class Hub:
    """A hub without broker: what it would publish is kept in ``published``."""

    def __init__(
        self, state: Path, url: str = "", baselines: Baselines = no_baseline, codec: Codec | None = None
    ) -> None:
        self.now = datetime(2026, 5, 1, 12, tzinfo=UTC)
        keys.init(state, self.now)
        self.store = Store(url or state / "hub.db")
        self.published: list[tuple[str, bytes, bool]] = []
        targets = TargetsRepository(state)
        publisher = Publisher(self.store, Director(state), targets, self.send, self.clock)
        self.audit = AuditLog(self.store, state / "keys")
        self.runner = RolloutRunner(self.store, publisher, Incidents(), self.audit, baselines=baselines)
        self.blobs = BlobStore(state / "blobs", codec=codec)
        self.registry = Registry(self.store, self.blobs, targets)
        self.services = Services(
            store=self.store,
            releases=self.registry,
            garbage=Collector(self.store, self.blobs, self.registry, self.audit, KEEP, frozenset),
            runner=self.runner,
            incidents=Incidents(),
            audit=self.audit,
            witnesses=Witnesses(self.store, self.audit, Incidents(), "demo", self.send, clock=self.clock),
            commands=Commands(self.store, "demo", self.send),
            delivery=NoDelivery(),
            identities=self.identities(state, publisher),
            mint=self.mint,
            keys=KeyDesk(state, targets, self.clock),
            resigned=self.resigned,
            clock=self.clock,
            version="0.1.0",
            work=state,
        )
        self.app = build(self.services)

    async def resigned(self) -> None:
        await self.registry.settle()

    def clock(self) -> datetime:
        return self.now

    def send(self, topic: str, payload: bytes, retain: bool) -> None:
        self.published.append((topic, payload, retain))

    def identities(self, state: Path, publisher: Publisher) -> Identities:
        authority = Authority(state)
        authority.init(self.now)
        nowhere = Address("127.0.0.1", 1, authority.ca_path, authority.ca_path, authority.ca_path)
        warden = Warden(self.store, authority, None, nowhere, "demo", self.send, self.clock)
        return Identities(self.store, authority, warden, publisher, self.audit, self.clock, lambda _: None)

    async def mint(self, site: str, labels: dict[str, str], now: datetime, *, replaces: bool = False) -> str:
        return f"lrt1.{site}"

    def client(self, token: str = "", **more: Any) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx2.ASGITransport(app=self.app)
        return httpx2.AsyncClient(transport=transport, base_url=more.pop("url", URL), headers=headers, **more)

    async def person(self, name: str, role: Role) -> httpx2.AsyncClient:
        def make(connection: Any) -> str:
            users.ensure(connection, name, role, self.now)
            return tokens.create(connection, name, "test", scopes=["*"], days=1, now=self.now)

        return self.client(await self.store.write(make))

    async def enrol(self) -> None:
        rows = [{"id": d, "fleet": "demo", "site": s, "online": True} for d, s in SITES.items()]
        await self.store.write(lambda c: c.execute(insert(tables.devices), rows) and None)

    async def report(  # noqa: PLR0917  what a report says
        self, device: str, state: str, release: str, rollout: str, sentence: str = "", cause: str = "told"
    ) -> None:
        """What ingest does with a device's update report and state."""
        row = {"device": device, "model": "delay", "release": release, "rollout": rollout}
        served = {"model": "delay", "version": "v1", "release": release, "state": "working", "wanted": "", "used": ""}

        def apply(connection: Any) -> None:
            connection.execute(tables.updates.delete().where(tables.updates.c.device == device))
            report = {**row, "state": state, "cause": cause, "sentence": sentence}
            connection.execute(insert(tables.updates).values(report))
            if state == "COMMITTED":
                doc = {"models": [served], "generation": 1}
                own = tables.devices.c.id == device
                connection.execute(update(tables.devices).where(own).values(doc=doc))

        await self.store.write(apply)
        await self.runner.tick(self.now)


class NoDelivery:
    async def view(self) -> list[dict[str, Any]]:
        return []


SKETCH = {"kind": "histogram", "edges": [0.0, 12.0, 24.0], "counts": [3, 4], "missing": 0}


def release(note: str = "first") -> Packed:
    config = ReleaseConfig(
        model="delay",
        family="mlp",
        created="2026-05-01T00:00:00Z",
        signature=Signature(inputs=(), output="late"),
        gates=Gates(metrics={"log_loss": 0.5}),
        lineage=Lineage(),
    )
    definition = msgspec.json.encode({"name": "delay", "purpose": "late departures"})
    baseline = msgspec.json.encode({"columns": {"hour": SKETCH}})
    return pack({"definition.json": definition, "card.md": note.encode(), "baseline.json": baseline}, config)


async def push(client: httpx2.AsyncClient, packed: Packed) -> str:
    headers = {"Content-Type": "application/x-tar"}
    answer = await client.post("/api/v1/releases", content=write_archive(packed), headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["digest"])


async def rolled_out(hub: Hub, ann: httpx2.AsyncClient, bob: httpx2.AsyncClient, note: str = "first") -> dict[str, Any]:
    """A release pushed, approved, and its rollout (canary EWR) begun."""
    digest = await push(ann, release(note))
    assert (await bob.post(f"/api/v1/releases/{digest}/approve")).status_code == 200
    plan = {"waves": [{"devices": ["EWR"]}, {"rest": True}]}
    made = await ann.post("/api/v1/rollouts", json={"model": "delay", "release": digest, "plan": plan})
    assert made.status_code == 201, made.text
    begun = await bob.post(f"/api/v1/rollouts/{made.json()['id']}/approve")
    assert begun.status_code == 200, begun.text
    return dict(begun.json())
