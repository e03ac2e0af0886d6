"""A revoked device is out: its live session is cut, it does not come back, nothing of it counts, others go on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from landreeve_hub.broker.child import Kind, find_program
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.warden import revoke_in
from landreeve_hub.store.tables import facts
from sqlalchemy import func, select

from tests.integration.fleet_yard import FLEET, Device, Yard, now, open_yard


@pytest.fixture(params=list(Kind))
async def yard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Yard]:
    try:
        find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    async with open_yard(tmp_path, request.param) as running:
        yield running


@contextmanager
def speaking(*devices: Device) -> Iterator[None]:
    for device in devices:
        device.start()
    try:
        yield
    finally:
        for device in devices:
            device.stop()


async def counted(yard: Yard, device: Device) -> int:
    query = select(func.count()).select_from(facts).where(facts.c.device == device.name)
    return int(await yard.store.read(lambda c: c.execute(query).scalar_one()))


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110  other threads change it
            await asyncio.sleep(0.02)


async def test_revoked_device_is_cut_and_nothing_of_it_counts_any_more(yard: Yard) -> None:
    bad, good = await yard.enrol("bad"), await yard.enrol("good")
    with speaking(bad, good):
        await until(lambda: bad.connected and good.connected and bad.sent > 20)
        cut = await yard.identities.revoke("bad", by="ann", reason="stolen")
        assert cut.seconds is not None
        await until(lambda: not bad.connected)
        accepted, of_good, tried = await counted(yard, bad), await counted(yard, good), bad.sent
        # It goes on trying: a new connection each second, a fact each 50 ms.
        await until(lambda: len(bad.dropped) > 3 and bad.sent > tried + 60)
        assert accepted > 0
        assert await counted(yard, bad) == accepted
        assert not bad.connected
        assert await counted(yard, good) > of_good
        assert (good.connections, good.connected) == (1, True)
        await asyncio.to_thread(nothing_is_retained, yard, bad, good)


async def test_device_that_slips_in_after_its_cut_is_cut_again_as_soon_as_it_speaks(yard: Yard) -> None:
    """As when a busy broker reads the revocation list only after the device is back: here nobody cut it at all."""
    bad, good = await yard.enrol("bad"), await yard.enrol("good")
    with speaking(bad, good):
        await until(lambda: bad.connected and good.connected and bad.sent > 20)
        await yard.store.write(lambda c: revoke_in(c, bad.name, now(), "revoked"))
        await until(lambda: bool(bad.dropped))
        await until(lambda: not bad.connected)
        accepted = await counted(yard, bad)
        tried = bad.sent
        await until(lambda: bad.sent > tried + 40)
        assert await counted(yard, bad) == accepted
        assert (good.connections, good.connected) == (1, True)


def nothing_is_retained(yard: Yard, bad: Device, good: Device) -> None:
    """A late reader of everything finds the other's state, which was retained before, and nothing of the device."""
    with yard.reader(f"lr/1/{FLEET}/up/#") as heard:
        topics = {heard.get(timeout=10)}
        while f"lr/1/{FLEET}/up/{good.name}/event" not in topics:
            topics.add(heard.get(timeout=10))
    assert f"lr/1/{FLEET}/up/{good.name}/state" in topics
    assert not {topic for topic in topics if bad.name in topic}


async def test_list_that_was_signed_anew_lets_everybody_else_in(yard: Yard) -> None:
    """And a broker that starts with it refuses the revoked one from the first moment."""
    bad, good = await yard.enrol("bad"), await yard.enrol("good")
    await yard.identities.revoke(bad.name, by="ann", reason="")
    await yard.identities.warden.renew_list()
    watching = asyncio.create_task(yard.broker.watch())
    yard.broker.restart()
    await until(lambda: yard.broker.generation == 2)
    with speaking(bad, good):
        await until(lambda: good.connected and len(bad.dropped) > 1)
        assert bad.connections == 0
    assert await counted(yard, bad) == 0
    await yard.broker.stop()
    await watching
