"""What paho does behind one's back, and that neither the agent's carrier nor the hub's line lets it through.

Each test names the trap; `landreeve_agent.link.carrier` and `landreeve_hub.ingest.line` say how they avoid it.
"""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from landreeve.wire.messages import DeviceState, Event
from landreeve_agent.doors.broker import Broker as SiteBroker
from landreeve_agent.doors.broker import BrokerOptions
from landreeve_agent.doors.errors import UnreachableError
from landreeve_agent.link.carrier import CarrierError, Endpoint, Message, PahoCarrier, Will
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.session import Handlers, Options, Session
from landreeve_agent.store.database import Database
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.line import Message as HubMessage

from tests.fakes.mqtt_server import PUBLISH, DeafServer
from tests.integration.test_carrier_contract import free_port, mosquitto

NOW = datetime.now(UTC)
WILL = Will("state/d-1", b"offline")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - looks at what another thread or program did
            await asyncio.sleep(0.01)


@pytest.fixture
async def deaf() -> AsyncIterator[DeafServer]:
    server = DeafServer()
    await server.start()
    yield server
    await server.stop()


def paho_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "paho" in thread.name]


async def test_a_publish_without_a_connection_is_not_queued_and_sent_later(tmp_path: Path) -> None:
    """Trap: publish() answers "no connection" and queues the message all the same."""
    port = free_port()
    stop = await mosquitto(tmp_path, port)
    got: list[bytes] = []
    endpoint = Endpoint("127.0.0.1", port, "d-1", None, persistent=False)
    sender = await PahoCarrier.open(endpoint, WILL, lambda _message: None)
    line = plain_line(tmp_path, port)
    line.start()
    await until(lambda: line.connected)
    await stop()
    await until(lambda: sender.lost.is_set() and not line.connected)
    sender.publish("up/late", b"of the agent", qos=1)
    line.publish("up/late", b"of the hub")
    await sender.close(abrupt=True)
    stop = await mosquitto(tmp_path, port)
    reader = await PahoCarrier.open(replace(endpoint, client_id="r"), WILL, lambda m: got.append(m.payload))
    reader.subscribe("up/#", qos=1)
    again = await PahoCarrier.open(endpoint, WILL, lambda _message: None)
    await until(lambda: line.connected)
    await asyncio.sleep(0.1)
    line.publish("up/fresh", b"hub")
    again.publish("up/fresh", b"agent", qos=1)
    await until(lambda: sorted(got) == [b"agent", b"hub"])
    for carrier in (again, reader):
        await carrier.close()
    await asyncio.to_thread(line.stop)
    await stop()


def plain_line(folder: Path, port: int) -> Line:
    """The hub's line without TLS, for a private broker on loopback."""

    class Plain(Line):
        def _build(self) -> Any:
            client = super()._build()
            client._ssl = False
            client.reconnect_delay_set(min_delay=1, max_delay=1)
            return client

    authority = Authority(folder / "hub")
    authority.init(NOW)
    pair = authority.issue_client("hub", NOW)
    return Plain(Address("127.0.0.1", port, authority.ca_path, pair.certificate, pair.key), "demo")


@asynccontextmanager
async def session(root: Path, port: int, waiting: int) -> AsyncIterator[Session]:
    class Who:
        device, fleet, broker_host, broker_port = "d-1", "demo", "127.0.0.1", port

    database = Database(root / "agent.db")
    outbox = Outbox(database)
    body = Event(name="e", subject="s", cause="c", sentence="It happened.")
    await database.write(lambda db: [outbox.enqueue(db, body, NOW) for _ in range(waiting)])

    async def ignore(_order: object) -> None:
        return

    made = Session(
        Who(),
        None,
        outbox,
        Handlers(ignore, ignore, lambda *_: None),
        lambda: DeviceState(session=0, online=True, at=""),
        clock=lambda: NOW,
        options=Options(reconnect_jitter_s=0.0, resend_s=3600.0),
    )
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        database.close()


async def test_a_new_connection_sends_no_more_than_the_window(tmp_path: Path, deaf: DeafServer) -> None:
    """Trap: after a reconnect paho sends all it remembers, whatever its in-flight limit (paho.mqtt.python#492)."""
    async with session(tmp_path, deaf.port, waiting=500):
        for connection in range(3):
            await until(lambda n=connection: len(deaf.connections) == n + 1)  # type: ignore[misc]
            await until(lambda n=connection: deaf.connections[n].count(PUBLISH) >= 51)  # type: ignore[misc]
            await asyncio.sleep(0.2)
            assert deaf.connections[connection].count(PUBLISH) == 51  # the state, and the window of 50
            deaf.hang_up()


async def test_an_exception_in_a_callback_does_not_end_the_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trap: it ends paho's thread in silence, and is_connected() goes on to say yes."""
    caplog.set_level(logging.CRITICAL)
    port = free_port()
    stop = await mosquitto(tmp_path, port)

    class Clumsy(PahoCarrier):
        def _on_message(self, client: Any, data: Any, message: Any) -> None:
            if message.payload == b"bad":
                raise ZeroDivisionError
            super()._on_message(client, data, message)

    got: list[bytes] = []
    heard: list[bytes] = []
    endpoint = Endpoint("127.0.0.1", port, "d-1", None, persistent=False)
    one = await Clumsy.open(endpoint, WILL, lambda message: got.append(message.payload))
    one.subscribe("lr/1/demo/up/#", qos=1)
    line = plain_line(tmp_path, port)

    def clumsy(message: HubMessage) -> None:
        heard.append(message.payload)
        raise ZeroDivisionError

    line.on_message = clumsy
    line.on_connected.append(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    line.start()
    async with asyncio.timeout(15):
        while b"probe" not in got or b"probe" not in heard:  # until both subscriptions stand
            one.publish("lr/1/demo/up/d-1/event", b"probe", qos=1)
            await asyncio.sleep(0.1)
    for payload in (b"bad", b"good"):
        one.publish("lr/1/demo/up/d-1/event", payload, qos=1)
    await until(lambda: got[-1] == b"good" and heard[-2:] == [b"bad", b"good"])
    assert b"bad" not in got
    assert isinstance(one, Clumsy)
    assert one.failures == 1
    assert line.connected
    await one.close()
    await asyncio.to_thread(line.stop)
    await stop()


async def test_what_was_not_dealt_with_is_not_acknowledged(tmp_path: Path) -> None:
    """Trap: paho acknowledges on its own as soon as the callback returns, dealt with or not."""
    port = free_port()
    stop = await mosquitto(tmp_path, port)
    got: list[Message] = []
    endpoint = Endpoint("127.0.0.1", port, "d-1", None)
    other = await PahoCarrier.open(replace(endpoint, client_id="o"), WILL, lambda _message: None)
    for connection in range(3):
        one = await PahoCarrier.open(endpoint, WILL, got.append)
        one.subscribe("down/#", qos=1)
        if connection == 0:
            await asyncio.sleep(0.2)
            other.publish("down/command", b"train", qos=1)
        await until(lambda n=connection: len(got) == min(n + 1, 2))  # type: ignore[misc]
        if connection == 1:
            got[-1].done()
            await asyncio.sleep(0.2)
        await one.close(abrupt=True)
    assert len(got) == 2
    await other.close()
    await stop()


async def test_closing_does_not_wait_for_what_the_peer_does_not_read() -> None:
    """Trap: loop_stop() waits while packets are unsent."""
    server = DeafServer(reads=False)
    await server.start()
    carrier = await PahoCarrier.open(Endpoint("127.0.0.1", server.port, "d-1", None), WILL, lambda _message: None)
    for _ in range(64):
        carrier.publish("up/blocks", bytes(256 * 1024), qos=1)
    async with asyncio.timeout(15):
        await carrier.close()
    await until(lambda: not paho_threads())
    await server.stop()


async def test_the_hubs_line_does_not_wait_for_what_the_broker_does_not_read(tmp_path: Path) -> None:
    """The same trap at the hub, whose stopping it would hold up."""
    server = DeafServer(reads=False)
    await server.start()
    line = plain_line(tmp_path, server.port)
    line.start()
    await until(lambda: line.connected)
    for _ in range(64):
        line.publish("dn/blocks", bytes(256 * 1024))
    async with asyncio.timeout(15):  # TCP itself gives up after 20 s
        await asyncio.to_thread(line.stop)
    assert not paho_threads()
    await server.stop()


async def test_a_failed_handshake_says_so_and_leaves_neither_thread_nor_socket(
    tmp_path: Path, deaf: DeafServer
) -> None:
    """Trap: after a TLS error a second try hung (paho.mqtt.python#891), and its socket is never closed: an unclosed
    one is a warning here, and warnings are errors."""
    authority = Authority(tmp_path)
    authority.init(NOW)
    pair = authority.issue_client("d-1", NOW)
    for name, data in (("device.key", pair.key.read_bytes()), ("device.crt", pair.certificate.read_bytes())):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "ca.crt").write_text(authority.ca_pem)
    for _ in range(2):
        await fail_handshake(Endpoint("127.0.0.1", deaf.port, "d-1", tmp_path), deaf)
    assert not paho_threads()


async def fail_handshake(endpoint: Endpoint, server: DeafServer) -> None:
    opening = asyncio.create_task(PahoCarrier.open(endpoint, WILL, lambda _message: None))
    await until(lambda: bool(server.connections))
    server.connections.pop().writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://portal.invalid/\r\n\r\n")
    with pytest.raises(
        CarrierError, match=f"127.0.0.1:{server.port}: no TLS is spoken there .* captive portal .* Nothing was sent"
    ):
        await opening


async def test_a_connection_that_was_given_up_never_says_connect(deaf: DeafServer) -> None:
    """Trap: connect() blocks its thread past our timeout, and would then take over its successor's session."""
    carrier = PahoCarrier(Endpoint("127.0.0.1", deaf.port, "d-1", None), lambda _message: None)
    await carrier.close(abrupt=True)
    with pytest.raises(ConnectionAbortedError):
        await asyncio.to_thread(carrier._client.connect, "127.0.0.1", deaf.port, 30)
    await until(lambda: bool(deaf.connections))
    await asyncio.sleep(0.1)
    assert deaf.connections[0].kinds == []


@asynccontextmanager
async def no_client_is_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Every client made in here is gone, and with it its sockets, before any collection of rings."""
    made: list[weakref.ref[paho.Client]] = []
    begin = paho.Client.__init__

    def noted(client: paho.Client, *args: Any, **more: Any) -> None:
        made.append(weakref.ref(client))
        begin(client, *args, **more)

    monkeypatch.setattr(paho.Client, "__init__", noted)
    gc.disable()
    try:
        yield
        assert made
        await until(lambda: all(client() is None for client in made))  # threads let go of what they called last
    finally:
        gc.enable()


async def open_and_close_carrier(port: int, _folder: Path) -> None:
    carrier = await PahoCarrier.open(Endpoint("127.0.0.1", port, "d-1", None), WILL, lambda _message: None)
    await carrier.close()


async def open_and_close_line(port: int, folder: Path) -> None:
    line = plain_line(folder, port)
    line.start()
    await until(lambda: line.connected)
    await asyncio.to_thread(line.stop)


async def open_and_close_door(port: int, _folder: Path) -> None:
    options = BrokerOptions(host="127.0.0.1", port=port, prefix="shop", client_id="box")
    broker = await asyncio.to_thread(SiteBroker.open, options, lambda *_: None)
    await asyncio.to_thread(broker.close)


async def find_no_broker_for_the_door(_port: int, _folder: Path) -> None:
    options = BrokerOptions(host="127.0.0.1", port=free_port(), prefix="shop", client_id="box")
    with pytest.raises(UnreachableError):
        await asyncio.to_thread(SiteBroker.open, options, lambda *_: None)


@pytest.mark.parametrize(
    "use", [open_and_close_carrier, open_and_close_line, open_and_close_door, find_no_broker_for_the_door]
)
async def test_what_was_closed_leaves_no_client_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[int, Path], Awaitable[None]]
) -> None:
    """Trap: a client and the callbacks of its owner are a ring, and its socket pair stays open until a collection."""
    port = free_port()
    stop = await mosquitto(tmp_path, port)
    async with no_client_is_left(monkeypatch):
        await use(port, tmp_path)
    await stop()


async def test_a_connection_that_was_cut_leaves_no_client_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the peer reads nothing, so that the goodbye takes too long."""
    monkeypatch.setattr("landreeve_agent.link.carrier.CLOSE_TIMEOUT_S", 0.2)
    server = DeafServer(reads=False)
    await server.start()
    async with no_client_is_left(monkeypatch):
        carrier = await PahoCarrier.open(Endpoint("127.0.0.1", server.port, "d-1", None), WILL, lambda _message: None)
        for _ in range(64):
            carrier.publish("up/blocks", bytes(256 * 1024), qos=1)
        await carrier.close()
        del carrier
    await server.stop()
