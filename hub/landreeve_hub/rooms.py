"""The hub's rooms, built and wired by constructor: what `landreeve_hub.app` then runs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from landreeve.blobs.codec import Codec
from landreeve.blobs.store import BlobStore
from landreeve.sealed.blobs import SealedCodec
from landreeve.wire.codec import Block
from landreeve.wire.ids import check_id
from landreeve.wire.messages import (
    Audit,
    AuditHead,
    Body,
    Candidate,
    Cosigned,
    DriftReport,
    Event,
    Fact,
    PlanReport,
    UpdateReport,
    Want,
)
from landreeve.wire.schedule import LineRules
from sqlalchemy import Connection

from landreeve_hub.api import app as api
from landreeve_hub.api.changes import Changes
from landreeve_hub.api.services import Services
from landreeve_hub.audit.entry import Act
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.audit.witnesses import Witnesses
from landreeve_hub.broker.child import Broker, find_program
from landreeve_hub.broker.place import broker_place
from landreeve_hub.broker.plan import HUB_NAME, PROBES, BrokerPlan
from landreeve_hub.broker.probe import Door
from landreeve_hub.broker.selftest import SelfTest
from landreeve_hub.config import EnrolmentSettings, HubConfig, LineSettings
from landreeve_hub.desired.lines import rules_of
from landreeve_hub.desired.publish import Publisher
from landreeve_hub.errors import OperatorError
from landreeve_hub.fleet import register
from landreeve_hub.fleet.authority import Authority, authorities
from landreeve_hub.fleet.enrolment import TOKEN_LIFETIME, Rules, mint
from landreeve_hub.fleet.identities import Identities
from landreeve_hub.fleet.inventory import guests
from landreeve_hub.fleet.warden import Warden
from landreeve_hub.incidents.accusing import Accusations
from landreeve_hub.incidents.incidents import Incidents, IncidentWatch
from landreeve_hub.ingest.appliers import Applier, standard_appliers
from landreeve_hub.ingest.commit import Outcome
from landreeve_hub.ingest.delivery import Delivery
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.receive import Receiver
from landreeve_hub.ingest.speech import Speech
from landreeve_hub.ingest.tap import Tap
from landreeve_hub.learning.commands import Commands
from landreeve_hub.learning.runner import Learning
from landreeve_hub.process import Port, Ports
from landreeve_hub.registry.blocks import BlockServer
from landreeve_hub.registry.deltas import DeltaCache, Workshop
from landreeve_hub.registry.garbage import Collector
from landreeve_hub.registry.needless import DAY_S, HOUR_S
from landreeve_hub.registry.needless import Keep as KeepBlobs
from landreeve_hub.registry.quota import Quota
from landreeve_hub.registry.releases import Registry
from landreeve_hub.registry.soundness import Soundness
from landreeve_hub.registry.uploads import Challengers, Uploads
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.sealing import opened_vault
from landreeve_hub.signing import keys
from landreeve_hub.signing.desk import KeyDesk
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store.database import Store

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
EVERYWHERE = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  asked, not bound
_PARTS: dict[type[Body], str] = {
    UpdateReport: "rollouts",
    DriftReport: "drift",
    Candidate: "retrains",
    PlanReport: "plans",
}
Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Rooms:
    """Everything that is built for one run. ``broker`` is None when one runs elsewhere."""

    store: Store
    authority: Authority
    broker: Broker | None
    address: Address
    line: Line
    receiver: Receiver
    blocks: BlockServer
    publisher: Publisher
    runner: RolloutRunner
    self_test: SelfTest
    learning: Learning
    audit: AuditLog
    identities: Identities
    services: Services
    web: FastAPI


def make_keys(config: HubConfig, now: datetime) -> Authority:
    """Signing keys and the authority, where they are missing."""
    check_id(config.settings.fleet)
    keys.init(config.folder.root, now)
    authority = Authority(config.folder.root)
    authority.init(now)
    return authority


class Builder:
    """Builds the rooms of one hub. ``changed`` is told, in the event loop, which parts of the API changed."""

    def __init__(
        self,
        config: HubConfig,
        ports: Ports,
        clock: Clock,
        changes: Changes,
        changed: Callable[[set[str]], None],
    ) -> None:
        self._folder = config.folder
        self._settings = config.settings
        self._config = config
        self._ports = ports
        self._clock = clock
        self._changes = changes
        self._changed = changed

    async def build(self) -> Rooms:
        """Open the store and build what stands on it; nothing runs yet."""
        vault = opened_vault(self._folder, self._settings.at_rest.key)
        store = Store(self._config.store_url, list(vault.keys("store").values()) if vault else ())
        try:
            return await self._build_on(store, SealedCodec(vault.keys("blobs")) if vault else None)
        except BaseException:
            store.close()
            raise

    async def _build_on(self, store: Store, codec: Codec | None) -> Rooms:
        settings, folder, say = self._settings, self._folder, self._changes.say
        authority = make_keys(self._config, self._clock())
        broker = None if settings.broker.url else await self._broker(store, authority)
        address = self._address(authority, broker)
        line = Line(address, settings.fleet)
        speech = Speech(line.publish)
        await store.read(speech.load)
        blobs, targets = BlobStore(folder.blobs, codec=codec), TargetsRepository(folder.root)
        registry = Registry(store, blobs, targets)
        rate, known = settings.limits.facts_per_s or None, partial(_authorities, authority)
        carry = _line_rules(settings.line)
        publisher = Publisher(store, Director(folder.root), targets, speech.publish, self._clock, rate, known, carry)
        audit, incidents = AuditLog(store, folder.keys, f"landreeve-hub/{settings.fleet}"), Incidents()
        witnesses = Witnesses(store, audit, incidents, settings.fleet, speech.publish, clock=self._clock)
        warden = Warden(store, authority, broker, address, settings.fleet, line.publish, self._clock)
        rules = _enrolment_rules(settings.enrolment)
        identities = Identities(store, authority, warden, publisher, audit, self._clock, say, rules)
        runner = RolloutRunner(store, publisher, incidents, audit, say, registry.baseline)
        uploads = self._uploads(store, blobs, speech.publish)
        blocks = self._block_server(store, blobs, line, codec)
        commands = Commands(store, settings.fleet, speech.publish)
        learning = Learning(store, commands, Challengers(uploads, blobs, registry), self._clock, say)
        heard = [speech.heard, self._listener(), _answering(witnesses), expelling(identities)]
        receiver = Receiver(
            store,
            settings.fleet,
            self._appliers(audit, learning, IncidentWatch(incidents, self._clock), witnesses, registry.shelf.soundness),
            line.publish,
            self._clock,
            blocks=_Traffic(blocks, uploads),
            listeners=[*heard, accusing(Accusations(store, incidents, self._clock))],
        )
        self_test = self._self_test(authority, address, line, receiver, store, incidents)
        services = Services(
            store=store,
            releases=registry,
            garbage=Collector(store, blobs, registry, audit, self._keep_blobs(), uploads.wanted, blocks.deltas),
            runner=runner,
            incidents=incidents,
            audit=audit,
            witnesses=witnesses,
            commands=commands,
            delivery=Delivery(store),
            identities=identities,
            mint=self._mint(store, authority),
            keys=KeyDesk(folder.root, targets, self._clock),
            resigned=partial(_resigned, registry, publisher),
            clock=self._clock,
            version=version("landreeve"),
            work=folder.work,
            fleet=settings.fleet,
            check_broker=self_test.judge,
            facts_per_s=rate,
            line=_line_shown(settings.line) if carry else None,
            changes=self._changes,
            hosts=frozenset({*LOOPBACK, settings.https.name, *settings.http.hosts}),
        )
        kept = (store, authority, broker, address, line, receiver, blocks, publisher, runner, self_test)
        return Rooms(*kept, learning, audit, identities, services, api.build(services))

    def _uploads(self, store: Store, blobs: BlobStore, publish: Callable[[str, bytes, bool], None]) -> Uploads:
        quota = Quota(store, int(self._settings.transfer.quota_mb * 1e6), self._clock)
        return Uploads(blobs, publish, self._settings.fleet, quota=quota)

    def _keep_blobs(self) -> KeepBlobs:
        keep = self._settings.keep
        return KeepBlobs(keep.withdrawn_days * DAY_S or None, keep.orphan_hours * HOUR_S)

    def _block_server(self, store: Store, blobs: BlobStore, line: Line, codec: Codec | None) -> BlockServer:
        transfer = self._settings.transfer
        workshop = None
        if transfer.delta_cache_mb:
            workshop = Workshop(blobs, DeltaCache(self._folder.deltas, int(transfer.delta_cache_mb * 1e6), codec))
        rate = transfer.mb_per_s * 1e6
        return BlockServer(store, blobs, line, self._settings.fleet, bytes_per_s=rate, workshop=workshop)

    def _self_test(  # noqa: PLR0917  wiring
        self,
        authority: Authority,
        address: Address,
        line: Line,
        receiver: Receiver,
        store: Store,
        incidents: Incidents,
    ) -> SelfTest:
        """The self-test hears its probes before the ingest does."""
        fleet, tap = self._settings.fleet, Tap(receiver.take, self._settings.fleet, PROBES)
        line.on_message = tap.take
        door = Door(address.host, address.port, address.ca)
        return SelfTest(door, authority, fleet, line=line, tap=tap, store=store, incidents=incidents, clock=self._clock)

    async def _broker(self, store: Store, authority: Authority) -> Broker:
        settings = self._settings
        names = [settings.https.name, reachable(settings.broker.bind)]
        pair = authority.issue_server("broker", self._clock(), names)
        now = self._clock()
        # Before the broker reads it: a list that has expired while the hub was away would lock everybody out.
        authority.write_crl(await store.read(lambda connection: register.revoked(connection, now)), now)
        plan = BrokerPlan(
            settings.fleet,
            settings.broker.bind,
            self._ports.reserve(Port("broker", settings.broker.bind, settings.broker.port)),
            self._folder.broker,
            authority.trust_path,
            pair.certificate,
            pair.key,
            authority.crl_path,
        )
        return Broker(plan, find_program(settings.broker.kind), await store.read(guests))

    def _address(self, authority: Authority, broker: Broker | None) -> Address:
        """Where the hub itself reaches the broker, and what it shows there."""
        client = authority.issue_client(HUB_NAME, self._clock())
        host, port = self._place(broker)
        return Address(host, port, authority.trust_path, client.certificate, client.key)

    def _place(self, broker: Broker | None) -> tuple[str, int]:
        if broker is not None:
            return reachable(self._settings.broker.bind), broker.port
        return broker_place(self._settings.broker.url)

    def _appliers(
        self, audit: AuditLog, learning: Learning, watch: IncidentWatch, witnesses: Witnesses, soundness: Soundness
    ) -> dict[type[Body], Applier]:
        def record(connection: Connection, device: str, fact: Fact) -> None:
            if isinstance(fact.body, Audit):
                body = fact.body
                data = {**body.data, "at": fact.at, **({"site_seq": body.seq, "leaf": body.leaf} if body.seq else {})}
                act = Act(f"site:{device}:{body.actor}", body.action, body.object, body.decision, data)
                audit.record_in(connection, self._clock(), act)

        chains: dict[type[Body], list[Applier]] = {kind: [one] for kind, one in standard_appliers(record).items()}
        chains[Event].append(learning.apply)
        chains[UpdateReport].append(soundness.apply)
        chains[Candidate] = [learning.apply]
        chains[AuditHead] = [witnesses.apply_head]
        chains[Cosigned] = [witnesses.apply_line]
        return {kind: _chain([*chain, watch.apply]) for kind, chain in chains.items()}

    def _listener(self) -> Callable[[Outcome], None]:
        """Tells the event loop what a batch changed; called in the ingest thread."""
        loop = asyncio.get_running_loop()

        def tell(outcome: Outcome) -> None:
            changed = {"fleet", *(_PARTS.get(type(fact.body), "events") for _, fact in outcome.accepted)}
            loop.call_soon_threadsafe(self._changed, changed)

        return tell

    def _mint(self, store: Store, authority: Authority) -> Callable[..., Awaitable[str]]:
        async def made(site: str, labels: Mapping[str, str], now: datetime, *, replaces: bool = False) -> str:
            url = f"https://{bracketed(self._settings.https.name)}:{self._ports.found('https')}"
            known = authority.ca_fingerprint
            return await mint(
                store, site, labels, TOKEN_LIFETIME, now, url=url, ca_fingerprint=known, replaces=replaces
            )

        return made


def _enrolment_rules(wanted: EnrolmentSettings) -> Rules:
    return Rules(wanted.approval, wanted.certificate_days, wanted.recover_days)


def _authorities(authority: Authority) -> tuple[str, ...]:
    """Whom devices are told to trust: nobody in particular in a fleet that never rolled its authority."""
    return authorities(authority.trusted_pem) if authority.rolled else ()


def _answering(witnesses: Witnesses) -> Callable[[Outcome], None]:
    """Answers devices whose checkpoints a batch brought, the newest of each."""

    def answer(outcome: Outcome) -> None:
        heads = {device: fact.body for device, fact in outcome.accepted if isinstance(fact.body, AuditHead)}
        for device, head in heads.items():
            witnesses.answer(device, head)

    return answer


async def _resigned(registry: Registry, publisher: Publisher) -> None:
    """What is signed changed: releases whose signatures arrived are approved, documents carry the new metadata."""
    await registry.settle()
    await publisher.refresh()


def _line_rules(line: LineSettings) -> LineRules | None:
    """Rules for every site without its own at the hub; None without any. `OperatorError` for a window that is none."""
    if not line.mb_per_hour and not line.windows:
        return None
    try:
        return rules_of(line.mb_per_hour, line.windows)
    except ValueError as error:
        raise OperatorError(f"line.windows: {error}; write it like mon-fri 22:00-06:00") from error


def _line_shown(line: LineSettings) -> dict[str, Any]:
    return {"mb_per_hour": line.mb_per_hour, "windows": list(line.windows), "zone": ""}


class _Traffic:
    """Blocks both ways, as the ingest hands them on."""

    def __init__(self, server: BlockServer, uploads: Uploads) -> None:
        self._server = server
        self._uploads = uploads

    def on_want(self, device: str, digest: str, want: Want) -> None:
        self._server.on_want(device, digest, want)

    def on_block(self, device: str, block: Block) -> None:
        self._uploads.on_block(device, block)


def expelling(identities: Identities) -> Callable[[Outcome], None]:
    """Has who was thrown out and speaks all the same thrown out again; called in the ingest thread."""
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    def begin(names: frozenset[str]) -> None:
        task = loop.create_task(identities.spoke(names))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    def tell(outcome: Outcome) -> None:
        if outcome.strangers:
            loop.call_soon_threadsafe(begin, frozenset(outcome.strangers))

    return tell


def accusing(accusations: Accusations) -> Callable[[Outcome], None]:
    """Has incidents opened for who harms the others; called in the ingest thread."""

    def tell(outcome: Outcome) -> None:
        accusations.tell(outcome.accused)

    return tell


def _chain(appliers: Sequence[Applier]) -> Applier:
    def apply(connection: Connection, device: str, fact: Fact) -> None:
        for one in appliers:
            one(connection, device, fact)

    return apply


def reachable(host: str) -> str:
    """Where this machine itself reaches what listens on that address."""
    return "127.0.0.1" if host in EVERYWHERE else host


def bracketed(host: str) -> str:
    """The host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
