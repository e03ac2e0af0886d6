"""Old orders, repeated orders, repeated facts; a hub's disk that spoils what it keeps."""

import json
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from landreeve.release.layout import Packed

from tests.fakes.mqtt_client import part
from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Ear:
    """A client of the hub's broker: hears topics, and says what it is told to."""

    def __init__(self, port: int, ca: Path, certificate: Path, key: Path, topic: str = "") -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"ear-{time.monotonic_ns()}")
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(certificate, key)
        self._client.tls_set_context(context)
        self._client.on_message = lambda _c, _d, message: self.heard.append((message.topic, bytes(message.payload)))
        self._client.on_connect = lambda *_: self._client.subscribe(topic, qos=1) if topic else None
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(20)

    def close(self) -> None:
        part(self._client)


@pytest.fixture
def as_hub(yard: Yard) -> Iterator[Callable[[str], Ear]]:
    """A client with the hub's own certificate, as who has taken it over has."""
    ears: list[Ear] = []

    def make(topic: str) -> Ear:
        own = yard.state / "ca"
        ears.append(Ear(yard.ports["broker"], own / "ca.crt", *pair_of(own), topic))
        return ears[-1]

    yield make
    for ear in ears:
        ear.close()


def stands(site: Site) -> bytes:
    """The signed document that the hub last published for the site; itself may not read it at the broker."""
    ((document,),) = site.at_hub("SELECT document FROM desired WHERE device = ?", site.device)
    return bytes(document)


def pair_of(folder: Path) -> tuple[Path, Path]:
    """Certificate and key of the hub as a client of its broker."""
    (certificate,) = folder.rglob("hub*.crt")
    return certificate, certificate.with_suffix(".key")


@pytest.mark.fault("downgrade: an older signed order, retained")
def test_older_order_replayed_through_the_broker(
    yard: Yard, site: Site, table: Table, as_hub: Callable[[str], Ear]
) -> None:
    topic = f"lr/1/main/dn/{site.device}/desired"
    ear, old = as_hub(""), stands(site)
    version = yard.push(release(site.folder))
    site.arm("after:PROBATION")
    number = yard.order(version, site)
    site.reached()
    ear.say(topic, old, retain=True)
    site.go_on()
    ended = yard.ended(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    generation, pid = site.status()["generation"], site.status()["worker"]["pid"]
    assert json.loads(old)["generation"] < generation
    ear.say(topic, old, retain=True)
    site.stop()
    site.start()  # finds the older one at the broker
    site.until("the site to be back", lambda: site.status()["worker"]["pid"] not in {0, pid})
    site.until("the link", lambda: site.status()["hub"]["state"] != "unreachable")
    ear.say(topic, old, retain=True)
    time.sleep(1.0)
    site.version = version
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    assert site.status()["generation"] == generation
    row = site.judged("downgrade: an older signed order, retained", ended, "FINISHED")
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("replay: the same order and all its facts again")
def test_same_order_and_the_same_facts_again(
    yard: Yard, site: Site, table: Table, as_hub: Callable[[str], Ear]
) -> None:
    """The facts come again from the device's own identity, which nobody else can speak for."""
    down = f"lr/1/main/dn/{site.device}/desired"
    ear = as_hub(f"lr/1/main/up/{site.device}/#")
    version = yard.push(release(site.folder))
    ended = yard.ended(yard.order(version, site))
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    site.version = version
    for _ in range(3):
        ear.say(down, stands(site), retain=True)
    before = site.transitions()
    facts = [(t, p) for t, p in ear.heard if "/want/" not in t and not t.endswith(("/state", "/blocks"))]
    assert len(facts) > 8
    site.stop()  # else the two would throw each other out
    keys = site.state / "keys"
    thief = Ear(yard.ports["broker"], keys / "ca.crt", keys / "device.crt", keys / "device.key")
    site.until("the device's place at the broker", thief._client.is_connected)
    for topic, payload in facts * 2:
        thief.say(topic, payload)
    thief.close()
    site.start()
    site.until("the site to be back", lambda: site.status()["hub"]["state"] == "in_sync")
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    assert site.transitions() == before
    row = site.judged("replay: the same order and all its facts again", ended, "FINISHED", f"{2 * len(facts)} facts")
    table.add(row)
    assert row.holds, row


# What the hub keeps is spoilt -----------------------------------------------------------------------------------


def blob(yard: Yard, packed: Packed, path: str) -> Path:
    """Where the hub keeps a file of the release."""
    layer = packed.manifest.layer(path)
    assert layer is not None
    (found,) = yard.state.rglob(f"sha256/{layer.sha256}")
    return found


def flip(yard: Yard, packed: Packed) -> None:
    file = blob(yard, packed, "model.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def substitute(yard: Yard, packed: Packed) -> None:
    """Another whole and valid graph, of another approved release, under this one's name."""
    other = release(yard.folder)
    yard.push(other)
    shutil.copyfile(blob(yard, other, "model.onnx"), blob(yard, packed, "model.onnx"))


def substitute_manifest(yard: Yard, packed: Packed) -> None:
    other = release(yard.folder)
    yard.push(other)
    (theirs,), (ours,) = (yard.state.rglob(f"sha256/{one.digest}") for one in (other, packed))
    shutil.copyfile(theirs, ours)


SPOILT = {
    "corrupt artifact: a byte flipped at the hub": flip,
    "substituted artifact: another valid graph": substitute,
    "substituted artifact: another valid manifest": substitute_manifest,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.fault(name)) for name in SPOILT])
def test_what_the_hub_keeps_is_spoilt(yard: Yard, site: Site, table: Table, name: str) -> None:
    packed = release(site.folder)
    version = yard.push(packed)
    SPOILT[name](yard, packed)
    ended = yard.ended(yard.order(version, site))
    site.until(f"{site.version} to answer", lambda: site.prober.serves == site.version)
    causes = [cause for state, cause in site.transitions() if state == "REJECTED"]
    assert version not in site.prober.answered.values()
    row = site.judged(name, f"{ended}, {causes[-1] if causes else '-'}", "ROLLED_BACK, corrupt_artifact")
    table.add(row)
    assert row.holds, row
