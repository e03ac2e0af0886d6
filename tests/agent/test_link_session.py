"""The session over a broker in memory: what it sends, repeats, refuses, and says of itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from landreeve.wire.codec import Block, decode, encode, encode_block
from landreeve.wire.messages import (
    Ack,
    Birth,
    Command,
    DeviceState,
    Event,
    Fact,
    Metrics,
    ModelState,
    SignedDesired,
    Want,
)
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.pause import MIN_RETRY_S, pause_s
from landreeve_agent.link.session import Handlers, Options, Session
from landreeve_agent.store.continuity import begin_epoch
from landreeve_agent.store.database import Database

from tests.fakes.carrier import FakeBroker

NOW = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
UP, DOWN = "lr/1/demo/up/d-1", "lr/1/demo/dn/d-1"
QUICK = Options(reconnect_jitter_s=0.0, resend_s=0.05)
MODEL = ModelState(model="m", version="2", release="r", state="PROBATION", wanted="auto", used="cpu")


@dataclass(frozen=True)
class Who:
    device: str = "d-1"
    fleet: str = "demo"
    broker_host: str = "broker.invalid"
    broker_port: int = 8883


class Site:
    """A session over a fake broker, and what its handlers were told."""

    def __init__(self, root: Path, options: Options = QUICK) -> None:
        self.broker = FakeBroker()
        self.database = Database(root / "agent.db")
        self.outbox = Outbox(self.database)
        self.desired: list[int] = []
        self.commands: list[str] = []
        self.wants: list[str] = []
        self.state = DeviceState(session=0, online=True, at="")
        self.trouble: Exception | None = None
        handlers = Handlers(self._on_desired, self._on_command, lambda digest, _want: self.wants.append(digest))
        self.session = Session(
            Who(),
            None,
            self.outbox,
            handlers,
            lambda: self.state,
            clock=lambda: NOW,
            options=options,
            connect=self.broker.connect,
        )
        self.task = asyncio.create_task(self.session.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.database.close()

    async def say(self, *bodies: Any) -> None:
        await self.database.write(lambda db: [self.outbox.enqueue(db, body, NOW) for body in bodies])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - looks at what another task did
                await asyncio.sleep(0.002)

    async def emptied(self) -> None:
        async with asyncio.timeout(10):
            while (await self.outbox.size()).facts:  # noqa: ASYNC110 - looks at the store
                await asyncio.sleep(0.002)

    def facts(self) -> list[Fact]:
        """Every fact that reached the broker, repeats included."""
        quiet = {f"{UP}/state", f"{UP}/blocks"}
        return [decode(data, Fact) for topic, data in self.broker.log if topic.startswith(UP) and topic not in quiet]

    def states(self) -> list[DeviceState]:
        return [decode(data, DeviceState) for topic, data in self.broker.log if topic == f"{UP}/state"]

    def down(self, channel: str, message: Any, **options: Any) -> None:
        payload = message if isinstance(message, bytes) else encode(message)
        self.broker.publish(f"{DOWN}/{channel}", payload, **options)

    def acknowledge(self, seq: int) -> None:
        self.down("ack", Ack(epoch=self.facts()[0].epoch, seq=seq))

    async def _on_desired(self, signed: SignedDesired) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.desired.append(signed.generation)

    async def _on_command(self, command: Command) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.commands.append(command.id)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.until(lambda: site.session.contact.connected)
    yield site
    await site.stop()


def event(n: int = 0) -> Event:
    return Event(name="e", subject=str(n), cause="c", sentence="S.")


def desired(generation: int) -> SignedDesired:
    return SignedDesired(generation=generation, document="{}", director={}, targets={})


def command(name: str = "c-1") -> Command:
    return Command(id=name, name="train", args={}, expires="2027-01-01T00:00:00Z")


async def test_fact_is_kept_until_the_hub_itself_acknowledges(site: Site) -> None:
    await site.say(event())
    await site.until(lambda: len(site.facts()) >= 2)  # the broker has it, and it is repeated all the same
    assert (await site.outbox.size()).facts == 1
    site.acknowledge(1)
    await site.emptied()


async def test_no_more_than_the_window_is_under_way(site: Site) -> None:
    await site.say(*(event(n) for n in range(120)))
    await site.until(lambda: len(site.facts()) >= 100)
    assert max(fact.seq for fact in site.facts()) == 50
    site.acknowledge(30)
    await site.until(lambda: max(fact.seq for fact in site.facts()) == 80)


async def test_acknowledgement_of_another_incarnation_is_ignored(site: Site) -> None:
    await site.say(event())
    await site.until(lambda: len(site.facts()) >= 1)
    site.down("ack", Ack(epoch=1, seq=99))
    await site.until(lambda: len(site.facts()) >= 2)
    assert (await site.outbox.size()).facts == 1


async def test_facts_of_a_box_set_back_to_an_older_copy_are_sent_under_new_numbers(site: Site) -> None:
    await site.say(event(1), event(2))
    await site.until(lambda: len(site.facts()) >= 2)
    old = site.facts()[0].epoch
    site.acknowledge(99)
    await site.until(lambda: site.facts()[-1].epoch > old and site.facts()[-1].seq == 2)
    site.down("ack", Ack(epoch=site.facts()[-1].epoch, seq=2))
    await site.emptied()


async def test_facts_of_a_former_epoch_go_first_and_keep_their_numbers(site: Site) -> None:
    await site.say(event(1), event(2))
    await site.until(lambda: len(site.facts()) >= 2)
    old = site.facts()[0].epoch
    await site.outbox.database.write(lambda db: begin_epoch(db, old + 7))
    site.broker.cut()
    await site.say(event(3))
    before = len(site.facts())
    await site.until(lambda: len(site.facts()) >= before + 2)
    assert {(fact.epoch, fact.seq) for fact in site.facts()} == {(old, 1), (old, 2)}
    site.down("ack", Ack(epoch=old, seq=2))
    await site.until(lambda: (site.facts()[-1].epoch, site.facts()[-1].seq) == (old + 7, 1))
    site.down("ack", Ack(epoch=old + 7, seq=1))
    await site.emptied()


async def test_new_connection_sends_everything_that_waits_in_order(site: Site) -> None:
    await site.say(*(event(n) for n in range(10)))
    await site.until(lambda: len(site.facts()) >= 10)
    site.acknowledge(4)
    await site.until(lambda: site.session.contact.counts.acknowledged == 4)
    before = len(site.broker.log)
    site.broker.cut()
    await site.until(lambda: site.session.contact.counts.connections == 2)
    await site.until(lambda: len([1 for t, _ in site.broker.log[before:] if t == f"{UP}/event"]) >= 6)
    sent = [decode(data, Fact).seq for topic, data in site.broker.log[before:] if topic == f"{UP}/event"]
    assert sent[:6] == [5, 6, 7, 8, 9, 10]


async def test_each_kind_of_fact_goes_to_its_channel(site: Site) -> None:
    birth = Birth(agent="0", site="s", started="", hardware={}, metric_names=(), metric_set=1, certificate_expires="")
    await site.say(birth, Metrics(metric_set=1, rows=()), event())
    await site.until(lambda: len(site.facts()) >= 3)
    topics = [topic for topic, _ in site.broker.log if topic != f"{UP}/state"]
    assert topics[:3] == [f"{UP}/birth", f"{UP}/metric", f"{UP}/event"]


async def test_will_says_offline_with_the_session_that_died(site: Site) -> None:
    site.broker.cut()
    await site.until(lambda: site.session.contact.counts.connections == 2)
    first = site.states()[0].session
    told = [(state.session - first, state.online) for state in site.states()]
    assert told == [(0, True), (0, False), (1, True)]


async def test_cancelled_session_says_goodbye(site: Site) -> None:
    site.task.cancel()
    await asyncio.gather(site.task, return_exceptions=True)
    assert [state.online for state in site.states()] == [True, False]


async def test_changed_state_is_published_anew(site: Site) -> None:
    site.state = replace_models(site.state, MODEL)
    site.session.state_changed()
    await site.until(lambda: site.states()[-1].models == (MODEL,))
    assert site.states()[-1].online


def replace_models(state: DeviceState, *models: ModelState) -> DeviceState:
    return DeviceState(session=state.session, online=True, at=state.at, models=models)


async def test_order_whose_handler_failed_is_tried_again(tmp_path: Path) -> None:
    site = Site(tmp_path, replace(QUICK, order_retry_s=0.01))
    await site.session.connected.wait()
    site.trouble = RuntimeError("disk full")
    site.down("command", command())
    await site.until(lambda: site.session.contact.counts.failures >= 2)
    site.trouble = None
    await site.until(lambda: site.commands == ["c-1"])
    await site.stop()


async def test_order_whose_handler_failed_comes_again_with_the_next_connection(site: Site) -> None:
    site.trouble = RuntimeError("disk full")
    site.down("command", command())
    await site.until(lambda: site.session.contact.counts.failures == 1)
    site.trouble = None
    site.broker.cut()
    await site.until(lambda: site.commands == ["c-1"])


async def test_retained_order_is_heard_at_every_connection(site: Site) -> None:
    site.down("desired", desired(3), retain=True)
    await site.until(lambda: site.desired == [3])
    site.broker.cut()
    await site.until(lambda: site.desired == [3, 3])


async def test_slow_order_does_not_hold_up_acknowledgements(site: Site) -> None:
    gate = asyncio.Event()

    async def slow(_signed: SignedDesired) -> None:
        await gate.wait()

    object.__setattr__(site.session._handlers, "on_desired", slow)
    site.down("desired", desired(3))
    await site.say(event())
    await site.until(lambda: len(site.facts()) >= 1)
    site.acknowledge(1)
    await site.emptied()
    gate.set()


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        ("desired", b"not json"),
        ("desired", b'{"generation": "many"}'),
        ("command", b"{}"),
        ("ack", b'{"epoch": 1}'),
        ("blocks", b"LRB9"),
        ("gossip", b"{}"),
    ],
)
async def test_bad_message_is_counted_acknowledged_and_harmless(site: Site, channel: str, payload: bytes) -> None:
    site.down(channel, payload)
    await site.until(lambda: site.session.contact.counts.rejected == 1)
    (session,) = site.broker.sessions.values()
    await site.until(lambda: not session.unfinished)
    assert site.session.contact.counts.failures == 0
    await site.say(event())
    await site.until(lambda: len(site.facts()) >= 1)


async def test_message_for_another_device_is_refused(site: Site) -> None:
    (session,) = site.broker.sessions.values()
    session.filters["lr/1/demo/dn/d-2/command"] = 1
    site.broker.publish("lr/1/demo/dn/d-2/command", encode(command()))
    await site.until(lambda: site.session.contact.counts.rejected == 1)
    assert site.commands == []


async def test_block_on_the_topic_of_another_artifact_is_refused(site: Site) -> None:
    taken: list[Block] = []
    site.session.on_block = lambda block: taken.append(block) is None
    site.session.share("a" * 64)
    site.broker.publish(f"lr/1/demo/art/{'a' * 64}/blocks", encode_block(Block("b" * 64, 0, b"x")), qos=0)
    await site.until(lambda: site.session.contact.counts.rejected == 1)
    assert taken == []


async def test_blocks_nobody_here_wants_are_no_longer_listened_to(site: Site) -> None:
    (session,) = site.broker.sessions.values()
    topic = f"lr/1/demo/art/{'a' * 64}/blocks"
    session.filters[topic] = 0  # left over from an earlier life
    site.broker.publish(topic, encode_block(Block("a" * 64, 0, b"x")), qos=0)
    await site.until(lambda: topic not in session.filters)


async def test_want_of_the_hub_reaches_the_uploader(site: Site) -> None:
    site.down(f"want/{'a' * 64}", Want(bytes=1, missing="01"))
    await site.until(lambda: site.wants == ["a" * 64])


async def test_unreachable_broker_is_told_and_left_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.broker.down = True
    await site.until(lambda: "connection refused" in site.session.contact.problem)
    assert not site.session.contact.connected
    await site.say(event())
    site.broker.down = False
    await site.until(lambda: len(site.facts()) >= 1)
    assert site.session.contact.problem == ""
    await site.stop()


def long_event() -> Event:
    return Event(name="e", subject="s", cause="c", sentence="It happened. " * 200)


async def test_hub_that_has_not_said_it_reads_zstd_gets_plain_text(tmp_path: Path) -> None:
    site = Site(tmp_path)
    await site.session.connected.wait()
    await site.say(long_event())
    await site.until(lambda: len(site.facts()) >= 1)
    sent = [data for topic, data in site.broker.log if topic == f"{UP}/event"]
    assert sent[0].startswith(b"{")
    site.down("ack", Ack(epoch=site.facts()[0].epoch, seq=1, reads=("zstd",)))
    await site.emptied()
    assert {state.reads for state in site.states()} == {("zstd",)}
    await site.stop()
    again = Site(tmp_path)  # it is remembered across starts
    await again.say(long_event())
    await again.until(lambda: len(again.facts()) >= 1)
    sent = [data for topic, data in again.broker.log if topic == f"{UP}/event"]
    assert not sent[0].startswith(b"{")
    await again.stop()


async def test_hub_that_no_longer_reads_zstd_gets_plain_text_again(site: Site) -> None:
    await site.say(long_event())
    await site.until(lambda: len(site.facts()) >= 1)
    epoch = site.facts()[0].epoch
    site.down("ack", Ack(epoch=epoch, seq=1, reads=("zstd",)))
    await site.emptied()
    site.down("ack", Ack(epoch=epoch, seq=1, reads=()))
    await site.until(lambda: not site.session._hub_reads)
    before = len(site.broker.log)
    await site.say(long_event())
    await site.until(lambda: len(site.broker.log) > before)
    assert site.broker.log[before][1].startswith(b"{")


async def test_sessions_grow_across_restarts(tmp_path: Path) -> None:
    numbers = []
    for _ in range(3):
        site = Site(tmp_path)
        await site.session.connected.wait()
        numbers.append(site.states()[0].session)
        await site.stop()
    assert numbers[0] > 0
    assert numbers == sorted(set(numbers))


async def test_client_id_is_made_once_and_cannot_be_guessed(tmp_path: Path) -> None:
    ids = set()
    for _ in range(2):
        site = Site(tmp_path)
        await site.session.connected.wait()
        ids |= set(site.broker.sessions)
        await site.stop()
    (client_id,) = ids
    assert client_id.startswith("d-1-")
    assert len(client_id) == len("d-1-") + 16


@pytest.mark.parametrize(("jitter_s", "lasted_s"), [(0.0, 0.0), (0.0, 9.0), (60.0, 0.0), (60.0, 9.0)])
def test_pause_is_spread_over_the_jitter_and_never_none_after_a_refusal(jitter_s: float, lasted_s: float) -> None:
    pauses = [pause_s(jitter_s, lasted_s) for _ in range(2000)]
    assert min(pauses) >= max(0.0, MIN_RETRY_S - lasted_s)
    assert max(pauses) <= max(jitter_s, MIN_RETRY_S)
    if jitter_s:
        early = sum(pause < jitter_s / 2 for pause in pauses)
        assert 800 < early < 1200  # even: a fair coin is outside once in 10^18 runs


async def test_first_try_after_a_start_waits_for_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path, replace(QUICK, reconnect_jitter_s=3600.0))
    await site.until(lambda: site.session.contact.connected)
    await site.stop()


async def test_reconnecting_waits_up_to_the_jitter(tmp_path: Path) -> None:
    site = Site(tmp_path, replace(QUICK, reconnect_jitter_s=3600.0))
    await site.until(lambda: site.session.contact.connected)
    site.broker.cut()
    await site.until(lambda: not site.session.contact.connected)
    await asyncio.sleep(0.05)
    assert site.session.contact.counts.connections == 1
    await site.stop()
