"""Old orders, repeated orders, repeated facts; a hub's disk that spoils what it keeps."""

import json
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from landreeve.release.layout import Packed
from landreeve.wire.codec import decode
from landreeve.wire.messages import SignedDesired

from tests.fakes.mqtt_client import part
from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Voice:
    """A client of the hub's broker under somebody's certificate. The broker has one session for each name, so it and
    the owner of the name throw each other out; it says its words in between."""

    def __init__(self, port: int, ca: Path, certificate: Path) -> None:
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"voice-{time.monotonic_ns()}")
        context = ssl.create_default_context(cafile=str(ca))
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        self._client.tls_set_context(context)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Until the broker has it."""
        end = time.monotonic() + 30.0
        while time.monotonic() < end:
            with suppress(RuntimeError):
                sent = self._client.publish(topic, payload, qos=1, retain=retain)
                sent.wait_for_publish(3)
                if sent.is_published():
                    return
            time.sleep(0.1)
        raise AssertionError(f"the broker does not take {topic}")

    def close(self) -> None:
        part(self._client)


@contextmanager
def as_hub(yard: Yard) -> Iterator[Voice]:
    """Speaks as the hub, as who has taken it over could."""
    voice = Voice(yard.ports["broker"], yard.state / "ca" / "ca.crt", yard.state / "ca" / "hub-client.crt")
    try:
        yield voice
    finally:
        voice.close()


CHANNELS = {"birth": "birth", "metric": "metric", "drift": "drift", "audit": "audit", "audit_head": "audit"}


def told(site: Site) -> list[tuple[str, bytes]]:
    """The site's facts as it sent them, by topic."""
    rows = site.at_hub("SELECT epoch, seq, at, type, body FROM facts WHERE device = ? ORDER BY seq", site.device)
    facts = []
    for epoch, seq, at, kind, body in rows:
        payload = {"v": 1, "epoch": epoch, "seq": seq, "at": at, "body": json.loads(body)}
        channel = CHANNELS.get(kind, "event")
        facts.append((f"lr/1/main/up/{site.device}/{channel}", json.dumps(payload).encode()))
    return facts[-60:]


def stands(site: Site) -> bytes:
    """The signed document that the hub last published for the site; itself may not read it at the broker."""
    ((document,),) = site.at_hub("SELECT document FROM desired WHERE device = ?", site.device)
    return bytes(document)


@pytest.mark.fault("downgrade: an older signed order, retained")
def test_older_order_replayed_through_the_broker(yard: Yard, site: Site, table: Table) -> None:
    topic = f"lr/1/main/dn/{site.device}/desired"
    old = stands(site)
    version = yard.push(release(site.folder))
    site.arm("after:PROBATION")
    number = yard.order(version, site)
    site.reached()
    with as_hub(yard) as voice:
        voice.say(topic, old, retain=True)
    site.go_on()
    ended = yard.ended(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    generation, pid = site.status()["generation"], site.status()["worker"]["pid"]
    assert decode(old, SignedDesired).generation < generation
    with as_hub(yard) as voice:
        voice.say(topic, old, retain=True)
    site.stop()
    site.start()  # finds the older one at the broker
    site.until("the site to be back", lambda: site.status()["worker"]["pid"] not in {0, pid})
    site.until("the link", lambda: site.status()["hub"]["state"] != "unreachable")
    with as_hub(yard) as voice:
        voice.say(topic, old, retain=True)
    time.sleep(1.0)
    site.version = version
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    assert site.status()["generation"] == generation
    row = site.judged("downgrade: an older signed order, retained", ended, "FINISHED")
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("replay: the same order and all its facts again")
def test_same_order_and_the_same_facts_again(yard: Yard, site: Site, table: Table) -> None:
    """The facts come again from the device's own identity, which nobody else can speak for."""
    down = f"lr/1/main/dn/{site.device}/desired"
    version = yard.push(release(site.folder))
    ended = yard.ended(yard.order(version, site))
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    site.version = version
    with as_hub(yard) as voice:
        for _ in range(3):
            voice.say(down, stands(site), retain=True)
    before = site.transitions()
    facts = told(site)
    assert len(facts) > 8
    site.stop()  # else the two would throw each other out
    keys = site.state / "keys"
    thief = Voice(yard.ports["broker"], keys / "ca.crt", keys / "device.crt")
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
    """As a disk forgets: neither the file's length nor its time changes."""
    file = blob(yard, packed, "model.onnx")
    data, written = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    os.utime(file, ns=(written, written))


def substitute(yard: Yard, packed: Packed) -> None:
    """Another whole and valid graph, of another approved release, under this one's name."""
    other = release(yard.folder)
    yard.push(other)
    shutil.copyfile(blob(yard, other, "model.onnx"), blob(yard, packed, "model.onnx"))


def exchange_manifest(yard: Yard, packed: Packed) -> None:
    """The whole description of another approved release, under this one's name."""
    other = release(yard.folder)
    yard.push(other)
    (mine,), (theirs,) = (list(yard.state.rglob(f"sha256/{one.digest}")) for one in (packed, other))
    shutil.copyfile(theirs, mine)


def cut_off(yard: Yard, packed: Packed) -> None:
    file = blob(yard, packed, "model.onnx")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lose(yard: Yard, packed: Packed) -> None:
    blob(yard, packed, "model.onnx").unlink()


def heads(yard: Yard, packed: Packed) -> list[bool]:
    """Whether each part of the release is there, as an OCI client asks it."""
    parts = [f"blobs/sha256:{digest}" for digest in packed.blobs]
    return [yard.shelves(part) for part in (*parts, f"manifests/sha256:{packed.digest}")]


SPOILT = {
    "corrupt artifact: a byte flipped at the hub": flip,
    "corrupt artifact: cut off at the hub": cut_off,
    "corrupt artifact: lost at the hub": lose,
    "substituted artifact: another valid graph": substitute,
    "substituted artifact: another release's manifest": exchange_manifest,
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.fault(name)) for name in SPOILT])
def test_what_the_hub_keeps_is_spoilt(yard: Yard, site: Site, table: Table, name: str) -> None:
    """The site goes on with what it has, and the hub says what to do; the same release pushed again mends it."""
    packed = release(site.folder)
    version = yard.push(packed)
    assert all(heads(yard, packed))
    SPOILT[name](yard, packed)
    number = yard.order(version, site)
    ended = yard.ended(number)
    site.until(f"{site.version} to answer", lambda: site.prober.serves == site.version)
    causes = [cause for state, cause in site.transitions() if state == "REJECTED"]
    assert version not in site.prober.answered.values()
    incidents = [row for row in yard.process.get("incidents") if row["kind"] == "artifact_damaged"]
    assert packed.digest in [row["subject"]["release"] for row in incidents]
    assert not all(heads(yard, packed))
    assert yard.push(packed) == version
    assert all(heads(yard, packed))
    again = yard.retried(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    site.version = version
    whole = f"{ended}, {causes[-1] if causes else '-'}; pushed again {again}"
    row = site.judged(name, whole, "PAUSED, corrupt_artifact; pushed again FINISHED")
    table.add(row)
    assert row.holds, row
