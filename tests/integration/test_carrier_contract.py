"""What the session may rely on of a connection: paho against mosquitto, and the fake, keep the same promises."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from socket import socket

import pytest
from landreeve_agent.link.carrier import Carrier, CarrierError, Connect, Endpoint, Message, PahoCarrier, Will
from landreeve_hub.broker.child import find_program
from landreeve_hub.errors import BrokerError

from tests.fakes.carrier import FakeBroker

WILL = Will("state/d-1", b"offline")


@dataclass
class Party:
    """A client that keeps what it is told; ``keep`` leaves messages unfinished."""

    carrier: Carrier | None = None
    got: list[tuple[str, bytes]] = field(default_factory=list)
    finish: bool = True

    def receive(self, message: Message) -> None:
        self.got.append((message.topic, message.payload))
        if self.finish:
            message.done()

    async def has(self, topic: str, payload: bytes, times: int = 1) -> None:
        async with asyncio.timeout(10):
            while self.got.count((topic, payload)) < times:  # noqa: ASYNC110 - looks at another program's work
                await asyncio.sleep(0.01)


class Place:
    def __init__(self, connect: Connect, port: int) -> None:
        self._connect = connect
        self._endpoint = Endpoint("127.0.0.1", port, "d-1", None)
        self.parties: list[Party] = []

    async def join(self, name: str, *, finish: bool = True, persistent: bool = True) -> Party:
        party = Party(finish=finish)
        endpoint = replace(self._endpoint, client_id=name, persistent=persistent)
        party.carrier = await self._connect(endpoint, WILL, party.receive)
        self.parties.append(party)
        return party


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def mosquitto(folder: Path, port: int) -> Callable[[], Awaitable[object]]:
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    program = find_program("mosquitto").path
    process = await asyncio.create_subprocess_exec(
        str(program), "-c", str(configuration), stderr=asyncio.subprocess.DEVNULL, cwd=folder
    )
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break

    async def stop() -> None:
        process.terminate()
        await process.wait()

    return stop


@pytest.fixture(params=["paho", "fake"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param == "fake":
        yield Place(FakeBroker().connect, 1883)
        return
    port = free_port()
    try:
        stop = await mosquitto(tmp_path, port)
    except BrokerError as error:
        pytest.skip(str(error))
    place = Place(PahoCarrier.open, port)
    yield place
    for party in place.parties:
        if party.carrier is not None and not party.carrier.lost.is_set():
            await party.carrier.close()
    await stop()


async def test_message_reaches_who_subscribed(place: Place) -> None:
    one, two = await place.join("d-1"), await place.join("hub")
    assert one.carrier is not None
    assert two.carrier is not None
    two.carrier.subscribe("up/#", qos=1)
    await two.carrier.settle(0)
    await asyncio.sleep(0.1)
    one.carrier.publish("up/d-1/event", b"fact", qos=1)
    one.carrier.publish("down/d-1/event", b"no", qos=1)
    await two.has("up/d-1/event", b"fact")
    assert two.got == [("up/d-1/event", b"fact")]


async def test_retained_message_waits_for_a_late_subscriber(place: Place) -> None:
    one = await place.join("d-1")
    assert one.carrier is not None
    one.carrier.publish("up/state", b"here", qos=1, retain=True)
    await one.carrier.settle(0)
    two = await place.join("hub")
    assert two.carrier is not None
    two.carrier.subscribe("up/#", qos=1)
    await two.has("up/state", b"here")


async def test_who_vanishes_leaves_a_will(place: Place) -> None:
    one, two = await place.join("d-1"), await place.join("hub")
    assert one.carrier is not None
    assert two.carrier is not None
    two.carrier.subscribe("state/#", qos=1)
    await asyncio.sleep(0.1)
    await one.carrier.close(abrupt=True)
    await two.has("state/d-1", b"offline")
    assert one.carrier.lost.is_set()


async def test_who_says_goodbye_leaves_none(place: Place) -> None:
    one, two = await place.join("d-1"), await place.join("hub")
    assert one.carrier is not None
    assert two.carrier is not None
    two.carrier.subscribe("state/#", qos=1)
    await asyncio.sleep(0.1)
    await one.carrier.close()
    two.carrier.publish("state/marker", b"m", qos=1)
    await two.has("state/marker", b"m")
    assert ("state/d-1", b"offline") not in two.got


async def test_unfinished_message_comes_again_on_the_next_connection(place: Place) -> None:
    one, two = await place.join("d-1", finish=False), await place.join("hub")
    assert one.carrier is not None
    assert two.carrier is not None
    one.carrier.subscribe("down/#", qos=1)
    await asyncio.sleep(0.1)
    two.carrier.publish("down/command", b"train", qos=1)
    await one.has("down/command", b"train")
    await one.carrier.close(abrupt=True)
    again = await place.join("d-1")
    await again.has("down/command", b"train")


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent session", "clean start"])
async def test_what_came_while_away_is_kept_exactly_in_a_persistent_session(place: Place, persistent: bool) -> None:
    one, two = await place.join("d-1", persistent=persistent), await place.join("hub")
    assert one.carrier is not None
    assert two.carrier is not None
    one.carrier.subscribe("down/#", qos=1)
    two.carrier.publish("down/desired", b"retained", qos=1, retain=True)
    await one.has("down/desired", b"retained")
    await one.carrier.close(abrupt=True)
    two.carrier.publish("down/command", b"train", qos=1)
    await two.carrier.settle(0)
    again = await place.join("d-1", persistent=persistent)
    assert again.carrier is not None
    again.carrier.subscribe("down/#", qos=1)  # said on every connection: nothing hangs on what a broker remembers
    two.carrier.publish("down/marker", b"m", qos=1, retain=True)  # retained: whichever of the two comes first
    await again.has("down/marker", b"m")
    await again.has("down/desired", b"retained")
    assert (("down/command", b"train") in again.got) is persistent


async def test_unsubscribed_topic_is_silent(place: Place) -> None:
    one, two = await place.join("d-1"), await place.join("hub")
    assert one.carrier is not None
    assert two.carrier is not None
    one.carrier.subscribe("art/a", qos=0)
    one.carrier.subscribe("down/#", qos=1)
    one.carrier.unsubscribe("art/a")
    await asyncio.sleep(0.1)
    two.carrier.publish("art/a", b"block", qos=0)
    two.carrier.publish("down/marker", b"m", qos=1)
    await one.has("down/marker", b"m")
    assert ("art/a", b"block") not in one.got


async def test_second_connection_of_the_same_client_ends_the_first(place: Place) -> None:
    one = await place.join("d-1")
    await place.join("d-1")
    assert one.carrier is not None
    async with asyncio.timeout(10):
        await one.carrier.lost.wait()


async def test_nobody_there_is_said_with_the_address() -> None:
    port = free_port()
    with pytest.raises(CarrierError, match=f"127.0.0.1:{port}"):
        await PahoCarrier.open(Endpoint("127.0.0.1", port, "d-1", None), WILL, lambda _message: None)


async def test_missing_keys_are_said_with_the_folder_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CarrierError, match=r"keys in .*landreeve join"):
        await PahoCarrier.open(Endpoint("127.0.0.1", 1, "d-1", tmp_path), WILL, lambda _message: None)
