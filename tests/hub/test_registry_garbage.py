"""The hub's collector of blobs: whatever anybody needs stays, over any history; what nobody needs goes, in time.

Every reason to keep a release has a history in which it alone protects it: without that room of `roots` the blobs are
lost, so that no room can be forgotten and no test here holds by chance.
"""

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.registry import roots
from landreeve_hub.registry.deltas import DeltaCache, Entry
from landreeve_hub.registry.garbage import Collector, DoubtError, Item
from landreeve_hub.registry.needless import HOUR_S, MOST_STEP_S, Keep
from landreeve_hub.registry.releases import Registry, WrongStateError
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import select, update

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
KEEP = Keep(withdrawn_s=3 * HOUR_S, orphans_s=HOUR_S)
LONG = 6
"""Looks of an hour, after which whatever is needless is gone."""


def release(name: str) -> Packed:
    """A release with a layer of its own, and one that all share."""
    config = ReleaseConfig(
        model="m", family="none", created="2026-05-01T00:00:00Z", signature=Signature(inputs=(), output="y"),
        gates=Gates(), lineage=Lineage(),
    )  # fmt: skip
    return pack({"card.md": name.encode() * 50, "reference.json": b'{"shared": 1}'}, config)


RELEASES = {name: release(name) for name in "abcd"}
DIGEST = {name: packed.digest for name, packed in RELEASES.items()}


def parts(name: str) -> frozenset[str]:
    return frozenset({RELEASES[name].digest, *RELEASES[name].blobs})


@dataclass
class Signer:
    """The targets repository, as far as the registry knows it."""

    held: dict[str, int] = field(default_factory=dict)

    def add_release(  # noqa: PLR0917  as the port has it
        self, digest: str, length: int, model: str, version: str, approved_by: str, now: datetime
    ) -> None:
        self.held[digest] = length

    def remove_release(self, digest: str, now: datetime) -> None:
        self.held.pop(digest, None)

    def releases(self) -> dict[str, int]:
        return dict(self.held)

    def standing(self, digest: str) -> str:
        return ""


class Hub:
    """A registry with its collector, and a clock that only looks move on."""

    def __init__(self, root: Path, rooms: Iterable[Callable[..., Any]] = roots.ROOMS) -> None:
        self.root, self.rooms = root, tuple(rooms)
        self.store = Store(root / "hub.db")
        self.blobs = BlobStore(root / "blobs", margin_bytes=0)
        self.signer = Signer()
        self.registry = Registry(self.store, self.blobs, self.signer)
        self.audit = AuditLog(self.store, root / "keys")
        self.deltas = DeltaCache(root / "deltas", 10**6)
        self.busy: set[str] = set()
        self.clock_s = 0.0
        self.start()

    def start(self) -> None:
        """A new process: what the collector remembers is in the tables."""
        self.collector = Collector(
            self.store, self.blobs, self.registry, self.audit, KEEP, lambda: frozenset(self.busy), self.deltas,
            lambda: self.clock_s, lambda connection: roots.needed(connection, self.rooms),
        )  # fmt: skip

    async def look(self, hours: float = 1.0) -> list[Item]:
        self.clock_s += hours * HOUR_S
        return await self.collector.look(NOW)

    async def wait(self) -> None:
        for _ in range(LONG):
            await self.look()

    async def put(self, table: Any, **row: Any) -> None:
        await self.store.write(lambda c: upsert(c, table, row))

    async def push(self, name: str, state: str = "draft") -> None:
        packed = RELEASES[name]
        for data in (packed.manifest_bytes, *packed.blobs.values()):
            self.blobs.put(data)
        row = {"digest": packed.digest, "model": "m", "version": name, "manifest_bytes": len(packed.manifest_bytes)}
        await self.put(tables.releases, **row, state=state, purged="")

    async def become(self, name: str, state: str) -> None:
        table = tables.releases
        change = update(table).where(table.c.digest == DIGEST[name]).values(state=state)
        await self.store.write(lambda c: c.execute(change).rowcount)

    async def device(self, name: str, *keeps: str, runs: str = "", revoked: bool = False) -> None:
        model = {"model": "m", "release": DIGEST.get(runs, ""), "keeps": [DIGEST[one] for one in keeps]}
        doc = {"models": [model]} if runs else {}
        await self.put(tables.devices, id=name, site=name, doc=doc, revoked=revoked)

    async def rollout(self, number: str, to: str, device: str, prior: str, state: str = "FINISHED") -> None:
        await self.put(tables.rollouts, id=number, model="m", digest=DIGEST[to], state=state)
        await self.put(tables.rollout_members, rollout=number, device=device, doc={"prior": DIGEST[prior]})

    async def assign(self, device: str, name: str, rollout: str = "") -> None:
        await self.put(tables.assignments, device=device, model="m", digest=DIGEST[name], rollout=rollout)

    def here(self, name: str) -> bool:
        return parts(name) <= self.blobs.digests()

    async def purged(self, name: str) -> str:
        query = select(tables.releases.c.purged).where(tables.releases.c.digest == DIGEST[name])
        return str(await self.store.read(lambda c: c.execute(query).scalar()))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a hub that has just been made, to be copied: making one takes most of a second."""
    root = tmp_path_factory.mktemp("fresh")
    Hub(root).store.close()
    return root


@pytest.fixture
async def hub(tmp_path: Path, fresh: Path) -> AsyncIterator[Hub]:
    opened = Hub(Path(shutil.copytree(fresh, tmp_path / "hub")))
    yield opened
    opened.store.close()


async def test_what_nobody_needs_goes_in_time_and_stands_in_the_log(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.push("b")
    orphan = hub.blobs.put(b"an interrupted push")
    hub.blobs.begin("e" * 64, 100).write(0, b"x" * 100)
    hub.deltas.keep(Entry(DIGEST["b"], orphan, "", 0, "", ()), None)
    assert all(not item.removed for item in await hub.look())
    shown = await hub.collector.look(NOW, dry=True)
    assert {(one.digest, one.why) for one in shown if one.why.startswith("belongs")} == {
        (orphan, "belongs to no release"), ("e" * 64, "belongs to no release"),
    }  # fmt: skip
    assert {item.digest for item in await hub.look() if item.removed} == {orphan, "e" * 64}
    assert hub.here("a")
    assert hub.deltas.find(DIGEST["b"], orphan) is None
    removed = [item for item in [*await hub.look(), *await hub.look()] if item.removed]
    assert {item.digest for item in removed} == parts("a") - parts("b")
    assert {item.why for item in removed} == {"m a is withdrawn"}
    assert hub.here("b")
    assert (await hub.purged("a"), await hub.purged("b")) == ("2026-05-01T12:00:00.000Z", "")
    told = [(entry.actor, entry.action, entry.data["blobs"]) for entry in await hub.audit.listed(0, 9)]
    assert told == [
        ("hub", "blobs.remove", sorted(parts("a") - parts("b"))),
        ("hub", "blobs.remove", sorted([orphan, "e" * 64])),
    ]


# Each history makes `a` needed by one room of the tables alone.
async def _registered(hub: Hub) -> None:
    await hub.push("a", "awaiting")


async def _tagged(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.put(tables.aliases, model="m", alias="fleet", digest=DIGEST["a"])


async def _rolling(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.rollout("r-1", "b", "d-1", "a", "PAUSED")


async def _watched(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.rollout("r-1", "a", "d-1", "b")
    await hub.put(tables.rollouts, id="r-1", model="m", digest=DIGEST["a"], state="FINISHED", watch_until="2026-06-01")
    await hub.device("d-1", "b", runs="b")


async def _ordered(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.device("d-1", "b", runs="b")
    await hub.assign("d-1", "a")


async def _taken_back(hub: Hub) -> None:
    """The rollout is over and the device says it keeps nothing else: the rollout may still be taken back."""
    await hub.push("a", "quarantined")
    await hub.rollout("r-1", "b", "d-1", "a")
    await hub.device("d-1", "b", runs="b")
    await hub.assign("d-1", "b", "r-1")


async def _serving(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.device("d-1", "a", runs="a")


async def _factory(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.device("d-1", "b", "a", runs="b")


async def _unsaid(hub: Hub) -> None:
    """An older agent does not say what it keeps: whatever it was ever led to may be there."""
    await hub.push("a", "withdrawn")
    await hub.rollout("r-1", "a", "d-1", "b")
    await hub.device("d-1", runs="b")


async def _installing(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.device("d-1", "b", runs="b")
    await hub.put(tables.updates, device="d-1", model="m", release=DIGEST["a"], state="DOWNLOADING")


async def _training(hub: Hub) -> None:
    """All blobs are here, the candidate is not a release yet."""
    await hub.push("a", "withdrawn")
    await hub.put(tables.runs, id="t-1", model="m", state="candidate", request={"manifest": DIGEST["a"]})


async def _signed(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    hub.signer.held[DIGEST["a"]] = 1


async def _arriving(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    hub.busy |= parts("a")


History = Callable[[Hub], Coroutine[Any, Any, None]]
REASONS: list[tuple[History, Callable[..., Any] | None]] = [
    (_registered, roots._registered), (_tagged, roots._tagged), (_rolling, roots._rolling),
    (_watched, roots._rolling), (_ordered, roots._ordered), (_taken_back, roots._ordered),
    (_serving, roots._on_devices), (_factory, roots._on_devices), (_unsaid, roots._on_devices),
    (_installing, roots._on_devices), (_training, roots._training), (_signed, None), (_arriving, None),
]  # fmt: skip


@pytest.mark.parametrize(("history", "room"), REASONS, ids=[history.__name__[1:] for history, _ in REASONS])
async def test_every_reason_to_keep_a_release_keeps_it_and_is_the_only_one(
    hub: Hub, history: History, room: Callable[..., Any] | None
) -> None:
    await hub.push("b")
    await history(hub)
    await hub.wait()
    assert hub.here("a")
    hub.rooms = tuple(one for one in roots.ROOMS if one is not room)  # the planted fault
    if room is None:
        hub.signer.held.clear()
        hub.busy.clear()
    await hub.wait()
    assert not hub.here("a")


async def test_a_box_that_was_thrown_out_keeps_nothing(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.device("d-1", "a", runs="a", revoked=True)
    await hub.assign("d-1", "a")
    await hub.put(tables.updates, device="d-1", model="m", release=DIGEST["a"], state="COMMITTED")
    await hub.wait()
    assert not hub.here("a")


async def test_needed_in_between_begins_anew(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    for _ in range(3):
        await hub.look()
    await hub.become("a", "approved")
    await hub.look()
    await hub.become("a", "withdrawn")
    for _ in range(3):
        await hub.look()
    assert hub.here("a")


async def test_only_time_the_hub_saw_counts(hub: Hub) -> None:
    """A hub that was off, asleep, or whose clock jumped removes nothing before it has looked for long enough."""
    orphan = hub.blobs.put(b"orphan")
    await hub.look()
    for _ in range(9):
        hub.start()
        assert not any(item.removed for item in await hub.look(hours=9999))
    assert (await hub.collector.look(NOW, dry=True))[0].age_s == 0
    await hub.push("a", "withdrawn")
    await hub.look(hours=9999)
    assert (await hub.collector.look(NOW, dry=True))[0].digest == DIGEST["a"] or not hub.blobs.has(orphan)
    await hub.look(hours=9999)
    assert max(item.age_s for item in await hub.collector.look(NOW, dry=True)) == MOST_STEP_S


async def test_a_needed_release_whose_manifest_is_lost_stops_every_removal(hub: Hub) -> None:
    orphan = hub.blobs.put(b"orphan")
    await hub.push("a", "approved")
    hub.blobs.remove(DIGEST["a"])
    with pytest.raises(DoubtError, match="push the release again"):
        await hub.wait()
    hub.blobs.path(DIGEST["a"]).write_bytes(b"{}")
    with pytest.raises(DoubtError):
        await hub.wait()
    assert hub.blobs.has(orphan)
    hub.blobs.remove(DIGEST["a"])
    await hub.push("a", "approved")
    await hub.wait()
    assert not hub.blobs.has(orphan)


async def test_a_release_whose_files_went_is_approved_only_after_another_push(hub: Hub) -> None:
    await hub.push("a", "withdrawn")
    await hub.wait()
    with pytest.raises(WrongStateError, match="push the release again"):
        await hub.registry.approve(DIGEST["a"], "ann", NOW)
    await hub.registry.register(RELEASES["a"], "ann", NOW)
    await hub.registry.approve(DIGEST["a"], "ann", NOW)
    await hub.wait()
    assert hub.here("a")


async def test_a_push_over_a_blob_that_is_about_to_go_keeps_it(hub: Hub) -> None:
    """The store has the blob, so the push writes nothing; the collector must not remove it before the row is there."""
    for data in RELEASES["a"].blobs.values():
        hub.blobs.put(data)
    await hub.look()
    async with hub.registry.turn:  # a push between its files and its row
        looking = asyncio.create_task(hub.look(2.0))
        await asyncio.sleep(0.1)
        assert not looking.done()
        await hub.push("a")
    await looking
    assert hub.here("a")


async def test_a_push_waits_while_files_are_removed(hub: Hub) -> None:
    async with hub.registry.turn:
        pushing = asyncio.create_task(hub.registry.register(RELEASES["a"], "ann", NOW))
        await asyncio.sleep(0.1)
        assert not hub.blobs.digests()
    await pushing
    assert hub.here("a")


async def test_a_kill_between_record_and_removal_loses_nothing_needed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hub.push("a", "withdrawn")
    await hub.push("b")
    monkeypatch.setattr(hub.collector, "_remove", lambda _digests: None)  # dies here
    await hub.wait()
    assert hub.here("a")
    assert await hub.purged("a")
    hub.start()
    await hub.wait()
    assert not hub.here("a")
    assert hub.here("b")


Step = tuple[str, str, str]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["push", "approve", "withdraw", "assign", "serve", "keep", "roll", "finish", "revoke", "tag", "look",
             "look", "look", "restart", "orphan"]
        ),
        st.sampled_from("abcd"),
        st.sampled_from(["d-1", "d-2"]),
    ),
    max_size=30,
)  # fmt: skip


class Ledger:
    """Who needs what, kept by hand beside the tables."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}
        self.assigned: dict[str, str] = {}
        self.keeps: dict[str, tuple[str, ...]] = {}
        self.rolling: dict[str, str] = {}
        self.ever: dict[str, set[str]] = {}
        self.tag = ""
        self.revoked: set[str] = set()

    def needed(self) -> set[str]:
        found = {name for name, state in self.state.items() if state in roots.STANDING} | {self.tag}
        found |= set(self.rolling.values())
        for device in {"d-1", "d-2"} - self.revoked:
            found |= {self.assigned.get(device, ""), *self.keeps.get(device, ())}
            if device in self.ever and not self.keeps.get(device):
                found |= self.ever[device]
        return found & set(self.state)


async def live(root: Path, steps: list[Step]) -> None:
    """One history: after each look everything that is needed, and was whole before, is whole."""
    hub, book = Hub(root), Ledger()
    try:
        for number, (step, name, device) in enumerate(steps):
            await _do(hub, book, (step, name, device), number)
            for one in book.needed():
                assert hub.here(one), f"{one} went at step {number}: {step}"
    finally:
        hub.store.close()


async def _do(hub: Hub, book: Ledger, what: Step, number: int) -> None:
    step, name, device = what
    known = hub.here(name) and name in book.state
    match step:
        case "push":
            book.state[name] = book.state.get(name, "draft")
            await hub.push(name, book.state[name])
        case "approve" | "withdraw" if known:
            book.state[name] = {"approve": "approved", "withdraw": "withdrawn"}[step]
            await hub.become(name, book.state[name])
        case "assign" if known and device not in book.revoked:
            book.assigned[device] = name
            await hub.assign(device, name)
        case "serve" | "keep" if known and device not in book.revoked:
            book.keeps[device] = (*book.keeps.get(device, ()), name)[-2:] if step == "keep" else (name,)
            await hub.device(device, *book.keeps[device], runs=name)
        case "roll" if known and device not in book.revoked:
            book.rolling[device] = name
            book.ever.setdefault(device, set()).add(name)
            if device not in book.keeps:
                await hub.device(device)
            await hub.rollout(f"r-{device}", name, device, name, "RUNNING")
        case "finish" if device in book.rolling:
            name = book.rolling.pop(device)
            book.ever[device] = {name}
            await hub.rollout(f"r-{device}", name, device, name)
        case "revoke":
            book.revoked.add(device)
            await hub.device(device, *book.keeps.get(device, ()), runs="a", revoked=True)
        case "tag" if known:
            book.tag = name
            await hub.put(tables.aliases, model="m", alias="fleet", digest=DIGEST[name])
        case "look":
            await hub.look()
        case "restart":
            hub.start()
        case "orphan":
            hub.blobs.put(hashlib.sha256(str(number).encode()).digest())
        case _:
            return


@settings(max_examples=20, deadline=None)
@given(steps=STEPS)
def test_whatever_is_needed_stays_over_any_history(fresh: Path, steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(shutil.copytree(fresh, Path(folder, "hub"))), steps))
