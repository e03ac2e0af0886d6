"""When the hub asks for a training, and what becomes of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig, Signature
from landreeve.wire.codec import decode
from landreeve.wire.messages import AnyBody, Candidate, Command, Event, Fact
from landreeve_hub.errors import TransferError
from landreeve_hub.learning.commands import Commands
from landreeve_hub.learning.retrain import RetrainPolicy, RunSeen, Train, Wait, WindowSeen, decide
from landreeve_hub.learning.runner import Learning
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import insert, select

NOW = datetime(2026, 11, 1, tzinfo=UTC)
JULY = datetime(2013, 7, 1, tzinfo=UTC)
OLD = "1" * 64


def window(verdict: str = "quality_lost", last: datetime = JULY, device: str = "d-1") -> WindowSeen:
    return WindowSeen(device, OLD, last - timedelta(days=7), last, verdict, "Log loss rose.")


def test_confirmed_loss_trains_on_the_days_before_it() -> None:
    answer = decide([window()], [], RetrainPolicy(lookback_days=60), {})
    assert answer == Train("d-1", JULY - timedelta(days=60), JULY, "Log loss rose.")


def test_drift_without_loss_trains_nothing() -> None:
    assert isinstance(decide([window("drifted")], [], RetrainPolicy(), {}), Wait)


def test_one_training_of_a_model_is_open_at_a_time() -> None:
    answer = decide([window()], [RunSeen("t-1", "d-2", JULY - timedelta(days=90), True)], RetrainPolicy(), {})
    assert answer == Wait("Training t-1 is still under way.")


def test_cooldown_is_counted_in_event_time() -> None:
    runs = [RunSeen("t-1", "d-1", JULY, False)]
    soon, later = JULY + timedelta(days=20), JULY + timedelta(days=22)
    assert isinstance(decide([window(last=soon)], runs, RetrainPolicy(cooldown_days=21), {}), Wait)
    assert isinstance(decide([window(last=later)], runs, RetrainPolicy(cooldown_days=21), {}), Train)


def test_loss_of_a_release_that_was_replaced_since_is_settled() -> None:
    assert isinstance(decide([window()], [], RetrainPolicy(), {"d-1": "2" * 64}), Wait)


# --- the walk from report to draft ---


class Site:
    """What a site would hand over, and a registry that takes it: `Challengers` without a broker."""

    def __init__(self, packed: Packed) -> None:
        self.blobs = {packed.digest: packed.manifest_bytes, **packed.blobs}
        self.here: dict[str, bytes] = {}
        self.registered: list[tuple[str, str, str]] = []
        self.reachable = True

    async def fetch(self, device: str, digest: str, size: int, blocks: tuple[str, ...] | None) -> None:
        if not self.reachable:
            raise TransferError(f"{device} sent nothing")
        assert len(self.blobs[digest]) == size
        self.here[digest] = self.blobs[digest]

    def read(self, digest: str) -> bytes:
        return self.here[digest]

    async def register(self, digest: str, *, by: str, device: str, run: str, now: datetime) -> str:
        self.registered.append((digest, device, run))
        return "v2"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


@pytest.fixture
def packed() -> Packed:
    config = ReleaseConfig(
        model="delay", family="mlp", created="", signature=Signature(inputs=(), output="p"), gates=Gates(),
        lineage=Lineage(),
    )  # fmt: skip
    return pack({"card.md": b"a challenger"}, config)


async def lost(store: Store) -> None:
    """A model, a site, and its window that lost quality."""
    report = {"verdict": "quality_lost", "sentence": "Log loss rose."}
    row = {"device": "d-1", "model": "delay", "window": 7, "release": OLD, "version": "v1", "rows": 900}
    span = {"first": "2013-06-24T00:00:00Z", "last": "2013-07-01T00:00:00Z"}

    def put(connection: Any) -> None:
        connection.execute(insert(tables.devices).values({"id": "d-1", "fleet": "demo", "site": "EWR"}))
        connection.execute(insert(tables.models).values({"name": "delay", "definition": {"name": "delay"}}))
        connection.execute(insert(tables.windows).values({**row, **span, "report": report}))

    await store.write(put)


def learning(store: Store, site: Site, sent: list[bytes]) -> Learning:
    commands = Commands(store, "demo", lambda _topic, payload, _retain: sent.append(payload))
    return Learning(store, commands, site, lambda: NOW)


async def say(room: Learning, store: Store, body: AnyBody, device: str = "d-1") -> None:
    fact = Fact(epoch=1, seq=1, at="2026-11-01T00:00:00Z", body=body)
    await store.write(lambda c: room.apply(c, device, fact))


async def runs(store: Store) -> list[Any]:
    return list(await store.read(lambda c: c.execute(select(tables.runs)).all()))


async def settled(room: Learning, now: datetime) -> None:
    await room.tick(now)
    if room._fetching is not None:
        await room._fetching


async def test_lost_quality_becomes_a_command_that_is_sent_until_answered(store: Store, packed: Packed) -> None:
    await lost(store)
    sent: list[bytes] = []
    room = learning(store, Site(packed), sent)
    await room.tick(NOW)
    await room.tick(NOW + timedelta(seconds=31))
    first, second = (decode(payload, Command) for payload in sent)
    assert first == second
    assert (first.name, first.args["model"], first.args["last"]) == ("train", "delay", "2013-07-01T00:00:00.000Z")
    done = Event(name="command.done", subject=first.id, cause="train", sentence="Queued.")
    await say(room, store, done)
    await room.tick(NOW + timedelta(seconds=99))
    assert len(sent) == 2


async def test_restart_does_not_ask_twice(store: Store, packed: Packed) -> None:
    await lost(store)
    await learning(store, Site(packed), []).tick(NOW)
    await learning(store, Site(packed), []).tick(NOW)
    assert len(await runs(store)) == 1


async def test_challenger_is_fetched_and_registered_as_a_draft_once(store: Store, packed: Packed) -> None:
    await lost(store)
    site, sent = Site(packed), []
    room = learning(store, site, sent)
    await room.tick(NOW)
    request = decode(sent[0], Command).args["request"]
    body = Candidate(
        model="delay", run="7", manifest=packed.digest, manifest_bytes=len(packed.manifest_bytes), metrics={},
        reason="Log loss rose.", request=request,
    )  # fmt: skip
    await say(room, store, body)
    await settled(room, NOW)
    await say(room, store, body)
    await settled(room, NOW)
    assert site.registered == [(packed.digest, "d-1", "7")]
    (run,) = await runs(store)
    assert (run.id, run.state, run.digest) == (request, "registered", packed.digest)
    assert run.request["sentence"] == "delay v2 waits for approval."


async def test_site_that_is_away_is_asked_again_later(store: Store, packed: Packed) -> None:
    await lost(store)
    site = Site(packed)
    site.reachable = False
    room = learning(store, site, [])
    size = len(packed.manifest_bytes)
    body = Candidate(model="delay", run="7", manifest=packed.digest, manifest_bytes=size, metrics={}, reason="")
    await say(room, store, body)
    await settled(room, NOW)
    assert [run.state for run in await runs(store) if run.id == "d-1.7"] == ["candidate"]
    (waiting,) = [run for run in await runs(store) if run.state == "candidate"]
    assert waiting.request["sentence"] == "The challenger could not be fetched yet: d-1 sent nothing"
    site.reachable = True
    await settled(room, NOW + timedelta(seconds=31))
    assert [run.state for run in await runs(store) if run.id == "d-1.7"] == ["registered"]


async def test_rejected_training_is_recorded_with_its_reason(store: Store, packed: Packed) -> None:
    await lost(store)
    sent: list[bytes] = []
    room = learning(store, Site(packed), sent)
    await room.tick(NOW)
    data = {"run": "7", "request": decode(sent[0], Command).args["request"], "model": "delay"}
    sentence = "The challenger is no better than the champion."
    event = Event(name="training.rejected", subject="delay", cause="gate", sentence=sentence, data=data)
    await say(room, store, event)
    (run,) = await runs(store)
    assert (run.state, run.request["sentence"]) == ("rejected", sentence)


async def test_refused_request_is_closed_with_the_sites_words(store: Store, packed: Packed) -> None:
    await lost(store)
    sent: list[bytes] = []
    room = learning(store, Site(packed), sent)
    await room.tick(NOW)
    refused = Event(
        name="command.refused", subject=decode(sent[0], Command).id, cause="bad", sentence="No such model here."
    )
    await say(room, store, refused)
    await room.tick(NOW)
    (run,) = await runs(store)
    assert (run.state, run.request["sentence"]) == ("refused", "No such model here.")


async def test_unanswered_request_expires_and_another_may_follow(store: Store, packed: Packed) -> None:
    await lost(store)
    room = learning(store, Site(packed), [])
    await room.tick(NOW)
    await room.tick(NOW + timedelta(hours=25))
    assert sorted(run.state for run in await runs(store)) == ["expired", "requested"]


@pytest.mark.parametrize("request_id", ["", "d-1.8", "d-1.7"])
async def test_no_device_speaks_for_the_training_of_another(store: Store, packed: Packed, request_id: str) -> None:
    await lost(store)
    sent: list[bytes] = []
    room = learning(store, Site(packed), sent)
    await room.tick(NOW)
    command = decode(sent[0], Command)
    started = Event(name="training.started", subject="7", cause="", sentence="", data={"run": "7", "model": "delay"})
    await say(room, store, started)
    run = request_id or command.args["request"]
    ended = Event(name="training.failed", subject="x", cause="", sentence="No.", data={"request": run, "model": "m"})
    body = Candidate(
        model="delay", run="7", manifest="f" * 64, manifest_bytes=9, metrics={}, reason="", request=run
    )  # fmt: skip
    for said in (ended, body):
        with pytest.raises(ValueError, match="is not one of this device"):
            await say(room, store, said, "d-2")
    refused = Event(name="command.refused", subject=command.id, cause="", sentence="No.")
    await say(room, store, refused, "d-2")
    assert {row.device for row in await runs(store)} == {"d-1"}
    assert (await store.read(lambda c: c.execute(select(tables.commands.c.answer)).scalar())) is None
