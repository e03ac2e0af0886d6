"""One device's key in bad hands, against the real brokers: what it may say, hear, keep and use up.

Part of the one suite that both brokers must pass; the yard is that of `test_broker_contract`.
"""

import asyncio
import contextlib
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve_hub.broker.child import Kind, find_program
from landreeve_hub.broker.plan import MAX_PACKET_BYTES
from landreeve_hub.broker.takeovers import MOST_EACH, SPARE, Takeovers
from landreeve_hub.errors import BrokerError
from landreeve_hub.incidents.accusing import Accusations
from landreeve_hub.incidents.incidents import Incidents, listed
from landreeve_hub.store.database import Store

from tests.integration.test_broker_contract import ART, DOWN, FLEET, UP, Client, Yard, running


@pytest.fixture(params=list(Kind))
async def yard(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Yard]:
    try:
        find_program(request.param.value)
    except BrokerError as error:
        pytest.skip(str(error))
    async with running(request.param, tmp_path) as place:
        yield place


def hears_only(hub: Client, device: Client) -> None:
    """The hub hears the device's own word and nothing else."""
    word = secrets.token_bytes(8)
    device.publish(f"{UP}/d-one/event", word)
    assert hub.next() == (f"{UP}/d-one/event", word)
    assert hub.got.empty()


def vanish(client: Client) -> None:
    """Gone without a goodbye, as a cut line: the broker then says the client's will."""
    sock = client._mqtt.socket()
    assert sock is not None
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def test_a_will_speaks_for_nobody_else(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#", f"lr/1/{FLEET}/art/#")
    for topic in (f"{UP}/d-one/state", f"{DOWN}/d-one/desired", ART, "lr/1/other/up/d-two/state"):
        evil = yard.client("d-two")
        evil._mqtt.will_set(topic, b"forged", qos=1, retain=True)
        if evil.connect():
            vanish(evil)
    own = yard.client("d-two")
    own._mqtt.will_set(f"{UP}/d-two/state", b"offline", qos=1)
    assert own.connect(), own.refused
    vanish(own)
    assert hub.next() == (f"{UP}/d-two/state", b"offline")  # said later, so the forged one would have come before
    hears_only(hub, victim)
    assert victim.got.empty()
    late = yard.inside("d-one", f"{DOWN}/d-one/#", f"lr/1/{FLEET}/art/#")
    hub.publish(f"{DOWN}/d-one/ack", b"marker")
    assert late.next() == (f"{DOWN}/d-one/ack", b"marker")  # nor was it kept


def test_nothing_is_kept_under_anothers_name(yard: Yard) -> None:
    for topic in (f"{DOWN}/d-one/desired", f"{UP}/d-one/state", ART):
        yard.inside("d-two").publish(topic, b"forged", retain=True)
    hub = yard.inside("hub", f"{UP}/#")
    late = yard.inside("d-one", f"{DOWN}/d-one/#", f"lr/1/{FLEET}/art/#")
    hears_only(hub, late)
    hub.publish(f"{DOWN}/d-one/ack", b"marker")
    assert late.next() == (f"{DOWN}/d-one/ack", b"marker")


PAST = (
    f"lr/+/{FLEET}/dn/d-one/desired",
    "lr/1/+/dn/#",
    "lr/1/+/+/+/+",
    "+/+/+/+/+/+",
    "/#",
    f"{DOWN}/d-one/want/+",
    f"{DOWN}/>",
    f"{DOWN}/*/desired",
    f"$share/d-two/{UP}/#",
    "$MQTT/rmsgs/#",
    "$JS/API/#",
    "$SYS/broker/clients/#",
)


def test_no_filter_reads_past_the_own_name(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#")
    for topic in PAST:
        # One at a time, by its own name on mosquitto; a broker that hangs up over it has refused as well.
        spy = yard.inside("d-two", f"{DOWN}/d-two/#")
        spy.subscribe(topic)
        hub.publish(f"{DOWN}/d-one/desired", b"secret", retain=True)
        assert victim.next()[1] == b"secret"
        hears_only(hub, victim)
        if spy.connected():
            hub.publish(f"{DOWN}/d-two/command", b"marker")
            assert spy.next() == (f"{DOWN}/d-two/command", b"marker"), topic
        assert spy.got.empty(), topic


def test_a_packet_beyond_the_limit_reaches_nobody_and_hurts_nobody(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#")
    huge = yard.inside("d-two")
    huge.publish(f"{UP}/d-two/event", bytes(MAX_PACKET_BYTES + 4096))
    hears_only(hub, victim)
    assert hub.connected()
    assert victim.connected()


def raw(yard: Yard, name: str) -> ssl.SSLSocket:
    """A TLS connection with a device's certificate, for bytes that no client would send."""
    context = ssl.create_default_context(cafile=str(yard.office.ca))
    context.load_cert_chain(yard.pairs[name].certificate, yard.pairs[name].key)
    plain = socket.create_connection(("127.0.0.1", yard.broker.port), timeout=10)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


CONNECT = bytes([0x10, 17, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 30, 0, 5]) + b"d-two"


MALFORMED = {
    "another protocol": b"GET / HTTP/1.1\r\n\r\n",
    "a packet of 256 MiB is announced": bytes([0x10, 0xFF, 0xFF, 0xFF, 0x7F]),
    "a length without an end": bytes([0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
    "two connects": CONNECT + CONNECT,
    "a subscription to nothing": CONNECT + bytes([0x82, 5, 0, 0, 0, 0, 1]),
    "a topic longer than its packet": CONNECT + bytes([0x32, 4, 0xFF, 0xFF, 0, 1]),
    "a packet of no kind": CONNECT + bytes([0xF0, 0]),
    "zeros": CONNECT + b"\x00" * 100_000,
}


def test_malformed_bytes_cost_their_sender_alone(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#")
    for attack in MALFORMED.values():
        with contextlib.suppress(OSError), raw(yard, "d-two") as sock:
            sock.settimeout(2)
            sock.sendall(attack)
            while sock.recv(4096):
                continue
        hears_only(hub, victim)
    assert (hub.drops, victim.drops) == (0, 0)


def test_one_who_asks_for_very_many_topics_costs_no_other_their_word(yard: Yard) -> None:
    hub = yard.inside("hub", f"{UP}/#")
    victim = yard.inside("d-one", f"{DOWN}/d-one/#")
    greedy = yard.inside("d-two")
    for number in range(2000):
        greedy._mqtt.subscribe(f"{DOWN}/d-two/{number}", qos=0)
    time.sleep(1.0)  # all of it is under way
    hears_only(hub, victim)
    hub.publish(f"{DOWN}/d-one/desired", b"order")
    assert victim.next() == (f"{DOWN}/d-one/desired", b"order")


async def test_one_key_with_very_many_connections_is_held_to_one_or_named(yard: Yard, tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    incidents = Incidents()
    accusations = Accusations(store, incidents, lambda: datetime.now(UTC))
    watch = Takeovers(yard.broker, store, incidents, accusations)
    try:
        await asyncio.to_thread(yard.inside, "d-one")
        await watch.look(datetime.now(UTC))
        crowd = [await asyncio.to_thread(_knock, yard, number) for number in range(SPARE + MOST_EACH)]
        await asyncio.sleep(0.5)
        await watch.look(datetime.now(UTC))
        found = await store.read(listed)
        alive = sum([await asyncio.to_thread(_answers, one) for one in crowd])
    finally:
        for one in crowd:
            one.close()
        store.close()
    if yard.broker.kind is Kind.MOSQUITTO:  # the name in the certificate is the client id: one session each
        assert alive == 1
        assert found == []
        return
    assert alive == len(crowd)
    (incident,) = found
    assert (incident["kind"], incident["subject"]["device"]) == ("device_crowds", "d-two")
    assert "landreeve-hub device revoke d-two" in incident["sentence"]


def _knock(yard: Yard, number: int) -> ssl.SSLSocket:
    """A connection of d-two under a client id of its own, past the broker's greeting."""
    sock = raw(yard, "d-two")
    name = b"d-two-%03d" % number
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + len(name).to_bytes(2, "big") + name
    sock.sendall(bytes([0x10, len(body)]) + body)
    assert sock.recv(4)[0] == 0x20
    return sock


def _answers(sock: ssl.SSLSocket) -> bool:
    """Whether the broker still answers a ping."""
    try:
        sock.settimeout(3)
        sock.sendall(b"\xc0\x00")
        return sock.recv(2) == b"\xd0\x00"
    except OSError:
        return False
