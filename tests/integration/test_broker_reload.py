"""Enrolments and revocations change what the broker admits; everyone else stays connected and loses nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from landreeve_hub.broker.child import Kind, find_program
from landreeve_hub.broker.plan import Guests
from landreeve_hub.errors import BrokerError

from tests.integration.test_broker_contract import DOWN, UP, Client, Yard, running

RELOADS = 20
STAYERS = ("d-one", "d-two")
GAP_S = 0.1


@pytest.fixture(params=list(Kind))
async def yard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Yard]:
    try:
        find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    async with running(request.param, tmp_path) as place:
        yield place


class Chatter:
    """A device and the hub that speak to each other at QoS 1 without a pause, numbering what they say."""

    def __init__(self, hub: Client, device: Client, name: str) -> None:
        self.name = name
        self.said = 0
        self._hub, self._device = hub, device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._thread.start()

    def stop(self) -> int:
        """How many messages each side sent."""
        self._stop.set()
        self._thread.join()
        return self.said

    def _talk(self) -> None:
        while not self._stop.is_set():
            number = str(self.said).encode()
            self._device.send(f"{UP}/{self.name}/event", number)
            self._hub.send(f"{DOWN}/{self.name}/command", number)
            self.said += 1
            time.sleep(0.005)


def drained(client: Client, topic: str, count: int) -> list[int]:
    """The numbers that came on that topic, once there are enough of them or nothing more comes."""
    got: list[int] = []
    others: list[tuple[str, bytes]] = []
    deadline = time.monotonic() + 10
    while len(set(got)) < count and time.monotonic() < deadline:
        if client.got.empty():
            time.sleep(0.01)
            continue
        where, payload = client.got.get()
        if where == topic:
            got.append(int(payload))
        else:
            others.append((where, payload))
    for one in others:
        client.got.put(one)
    return got


async def test_twenty_reloads_drop_nobody_and_lose_no_message(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    devices = {name: yard.inside(name, f"{DOWN}/{name}/#") for name in STAYERS}
    talks = [Chatter(hub, client, name) for name, client in devices.items()]
    try:
        for number in range(RELOADS):
            known = frozenset({*STAYERS, "d-new", *(f"d-more-{n}" for n in range(number)), *late(number)})
            await yard.broker.admit(Guests(known, frozenset({"d-new"} if number % 2 else ())))
            await asyncio.sleep(GAP_S)
        await asyncio.to_thread(_newcomer_gets_in, yard)
    finally:
        said = {talk.name: await asyncio.to_thread(talk.stop) for talk in talks}
    assert {name: client.drops for name, client in devices.items()} == dict.fromkeys(devices, 0)
    assert hub.drops == 0
    for name, client in devices.items():
        assert said[name] > RELOADS
        wanted = list(range(said[name]))
        assert sorted(set(await asyncio.to_thread(drained, client, f"{DOWN}/{name}/command", said[name]))) == wanted
        assert sorted(set(await asyncio.to_thread(drained, hub, f"{UP}/{name}/event", said[name]))) == wanted


def late(number: int) -> set[str]:
    return {"d-late"} if number == RELOADS - 1 else set()


def _newcomer_gets_in(yard: Yard) -> None:
    """The reloads were real: who was admitted last is served."""
    deadline = time.monotonic() + 10
    yard.pairs["d-late"] = yard.office.issue("d-late")
    while not yard.client("d-late").connect():
        assert time.monotonic() < deadline, "the device enrolled last never got in"
        time.sleep(0.1)
