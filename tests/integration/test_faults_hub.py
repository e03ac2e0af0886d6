"""Hostile input at a real hub: releases nobody should load, and an enrolled device that sends rubbish.

One hub and one broker serve the whole file: whatever a case did to them, the next one must find them well.
"""

import gzip
import io
import json
import ssl
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import paho.mqtt.client as mqtt
import pytest
import zstandard
from landreeve.release.layout import Packed
from landreeve.release.manifest import MAX_MANIFEST_BYTES
from landreeve.wire.codec import decode, encode
from landreeve.wire.messages import Ack, DeviceState, Event, Fact, Want
from landreeve.wire.topics import Down, DownTopic, Up, UpTopic, UpWantTopic, format_topic
from landreeve_agent.link.enrol import join
from landreeve_agent.link.identity import Identity
from landreeve_hub.exchange.archive import write_archive
from onnx import TensorProto, load_model_from_string

from tests.fakes.mqtt_client import part
from tests.hub.test_registry_releases import graph, release
from tests.integration.test_hub_process import Running

ARRIVES_S = 20.0


@dataclass
class Hub:
    """A running hub, as an administrator sees it."""

    running: Running

    def get(self, path: str) -> Any:
        answer = self.running.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, **how: Any) -> httpx2.Response:
        token = (self.running.state / "run" / "admin-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", **how.pop("headers", {})}
        return httpx2.post(f"{self.running.ports()['url']}/api/v1/{path}", headers=headers, timeout=60, **how)

    def push(self, archive: bytes) -> httpx2.Response:
        return self.post("releases", content=archive, headers={"Content-Type": "application/x-tar"})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    state = tmp_path_factory.mktemp("faults") / "hub"
    running = Running(state, "http.port=0", "https.port=0", "broker.port=0").up()
    yield Hub(running)
    running.end()


def deep(levels: int = 200_000) -> bytes:
    return b"[" * levels + b"]" * levels


# Releases -----------------------------------------------------------------------------------------------------


def files_of(packed: Packed) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(write_archive(packed))) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def with_link() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("model.onnx")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    return out.getvalue()


def with_layer(path: str) -> bytes:
    """A release whose manifest gives its model another name."""
    files = files_of(release())
    manifest = files["manifest.json"].replace(b'"model.onnx"', json.dumps(path).encode())
    assert manifest != files["manifest.json"]
    return tar({**files, "manifest.json": manifest, path: files["model.onnx"]})


def with_external_weights() -> bytes:
    model = load_model_from_string(graph())
    weights = model.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    weights.ClearField("float_data")
    place = weights.external_data.add()
    place.key, place.value = "location", "../../etc/passwd"
    return write_archive(release(onnx_bytes=model.SerializeToString()))


def with_manifest(manifest: bytes) -> bytes:
    return tar({**files_of(release()), "manifest.json": manifest})


def with_bad_digest() -> bytes:
    document = msgspec.json.decode(files_of(release())["manifest.json"])
    document["layers"][0]["digest"] = "sha256:ABC"
    return with_manifest(json.dumps(document).encode())


HOSTILE = {
    "a pickle layer": (lambda: with_layer("model.pkl"), "layer 'model.pkl': format not accepted", "never pickle"),
    "a path that climbs": (lambda: with_layer("../model.onnx"), "'../model.onnx'", "plain relative path"),
    "an absolute path": (lambda: with_layer("/etc/cron.d/model.onnx"), "/etc/cron.d", "plain relative path"),
    "a file in the tar that climbs": (lambda: tar({"../x.json": b"{}"}), "'../x.json'", "plain relative path"),
    "a link": (with_link, "'model.onnx'", "links and devices are not accepted"),
    "external weights": (with_external_weights, "model.onnx", "tensor 'w' lies outside the file"),
    "an oversize manifest": (
        lambda: with_manifest(b" " * (MAX_MANIFEST_BYTES + 1)), "manifest.json", f"at most {MAX_MANIFEST_BYTES} bytes"),
    "a bottomless manifest": (lambda: with_manifest(b'{"x":' + deep(100_000) + b"}"), "manifest", "nested too deeply"),
    "a digest that is none": (with_bad_digest, "digest", "64 lower-case hex digits"),
    "other weights than named": (
        lambda: tar({**files_of(release()), "model.onnx": b"\x00"}), "'model.onnx'", "does not have the digest"),
    "a file too many": (lambda: tar({**files_of(release()), "extra.json": b"{}"}), "'extra.json'", "not named"),
    "a graph that is none": (lambda: write_archive(release(onnx_bytes=b"\x80\x04pickled")), "model.onnx", "onnx"),
    "half a gzip": (lambda: gzip.compress(write_archive(release()))[:200], "archive", "not a tar file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_release_is_refused_with_what_and_where(hub: Hub, name: str) -> None:
    make, where, why = HOSTILE[name]
    answer = hub.push(make())
    assert 400 <= answer.status_code < 500, answer.text
    said = answer.json()["detail"]
    assert where in said
    assert why in said
    assert hub.get("releases") == []


def test_a_bottomless_body_is_a_bad_request_and_not_a_failure(hub: Hub) -> None:
    body = b'{"name":"status","args":{"x":' + deep() + b"}}"
    answer = hub.post("devices/nobody/commands", content=body)
    assert (answer.status_code, answer.json()["detail"]) == (422, "body: nested too deeply")


# A hostile device ---------------------------------------------------------------------------------------------


@dataclass
class Device:
    """A box with a good certificate and bad manners."""

    identity: Identity
    client: mqtt.Client
    epoch: int = 1_700_000_000_000_000_000
    acknowledged: int = 0
    _seq: int = 0
    _heard: threading.Condition = field(default_factory=threading.Condition)

    @staticmethod
    def enrolled(hub: Hub, site: str, folder: Path) -> "Device":
        token = hub.post("enrolment-tokens", json={"site": site}).json()["token"]
        identity = join(folder, token, datetime.now(UTC))
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"{site}-test")
        context = ssl.create_default_context(cafile=str(folder / "keys" / "ca.crt"))
        context.load_cert_chain(folder / "keys" / "device.crt", folder / "keys" / "device.key")
        client.tls_set_context(context)
        client.reconnect_delay_set(1, 1)
        device = Device(identity, client)
        client.on_connect = lambda *_: client.subscribe(format_topic(device.down(Down.ACK)), qos=1)
        client.on_message = device._take
        client.connect_async(identity.broker_host, identity.broker_port)
        client.loop_start()
        return device

    def up(self, channel: Up) -> UpTopic:
        return UpTopic(self.identity.fleet, self.identity.device, channel)

    def down(self, channel: Down) -> DownTopic:
        return DownTopic(self.identity.fleet, self.identity.device, channel)

    def send(self, payload: bytes, topic: str = "") -> None:
        """Publish, and wait until the broker has it."""
        deadline = time.monotonic() + ARRIVES_S
        while not self.client.is_connected():
            assert time.monotonic() < deadline, "the broker does not let the device in"
            time.sleep(0.05)
        self.client.publish(topic or format_topic(self.up(Up.EVENT)), payload, qos=1).wait_for_publish(ARRIVES_S)

    def tell(self, name: str) -> None:
        """A good fact, repeated as a device does until the hub acknowledges it."""
        self._seq += 1
        body = Event(name=name, subject="s", cause="c", sentence="It happened.")
        fact = encode(Fact(epoch=self.epoch, seq=self._seq, at="2026-05-01T12:00:00Z", body=body))
        deadline = time.monotonic() + ARRIVES_S
        while self.acknowledged < self._seq:
            assert time.monotonic() < deadline, f"the hub does not acknowledge fact {self._seq} any more"
            self.send(fact)
            with self._heard:
                self._heard.wait_for(lambda: self.acknowledged >= self._seq, timeout=1.0)

    def close(self) -> None:
        part(self.client)

    def _take(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        with self._heard:
            self.acknowledged = max(self.acknowledged, decode(bytes(message.payload), Ack).seq)
            self._heard.notify_all()


@pytest.fixture(scope="module")
def honest(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    device = Device.enrolled(hub, "honest", tmp_path_factory.mktemp("honest"))
    yield device
    device.close()


@pytest.fixture(scope="module")
def hostile(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    device = Device.enrolled(hub, "hostile", tmp_path_factory.mktemp("hostile"))
    yield device
    device.close()


def fact(at: str = "2026-05-01T12:00:00Z", seq: int = 1, epoch: int = 5, **body: Any) -> bytes:
    """A fact as bytes that `encode` would not make."""
    event = {"type": "event", "name": "n", "subject": "s", "cause": "c", "sentence": "x", **body}
    return json.dumps({"v": 1, "epoch": epoch, "seq": seq, "at": at, "body": event}).encode()


def bottomless_data(levels: int) -> bytes:
    return fact(data={"x": "HERE"}).replace(b'"HERE"', deep(levels))


RUBBISH = {
    "no JSON": (b"\x00\xff rubbish", "Fact: JSON is malformed"),
    "nothing": (b"", "Fact: "),
    "another version": (b'{"v":9,"epoch":5,"seq":1,"at":"2026-05-01T12:00:00Z","body":{"type":"event"}}', "`$.v`"),
    "a bomb": (zstandard.compress(b"[" * 9_000_000), "must state a size up to"),
    "half a frame": (zstandard.compress(b"{}" * 5000)[:-9], "compressed message"),
    "bottomless data": (bottomless_data(100_000), "nested too deeply"),
    "data too deep to show": (bottomless_data(600), "nested more than 32 deep"),
    "a moment before time": (fact(at="0001-01-01T00:00:00+14:00"), "lies outside the calendar"),
    "a number too large": (fact(epoch=2**63), "epoch 9223372036854775808"),
    "a number below one": (fact(seq=-1), "seq -1: numbers count from 1"),
    "half a character": (fact(name="X").replace(b'"X"', b'"\\ud800"'), "surrogate"),
    "years of minutes": (
        json.dumps({
            "v": 1, "epoch": 6, "seq": 1, "at": "2026-05-01T12:00:00Z",
            "body": {"type": "metric", "metric_set": 1, "rows": [[60.0 * n, 1.0] for n in range(20_000)]},
        }).encode(), "rows of 20000 minutes"),
}  # fmt: skip


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_of_one_device_is_kept_with_its_reason_and_holds_nobody_up(
    hub: Hub, hostile: Device, honest: Device, name: str
) -> None:
    payload, reason = RUBBISH[name]
    before = rejected(hub, hostile)
    hostile.send(payload)
    honest.tell(name)
    deadline = time.monotonic() + ARRIVES_S
    while rejected(hub, hostile) == before:
        assert time.monotonic() < deadline, "the refusal was not counted"
        time.sleep(0.05)
    assert reason in newest_reason(hub, hostile)
    assert hub.get("happened")["items"][0]["name"] == name


def rejected(hub: Hub, device: Device) -> int:
    rows = {row["site"]: row for row in hub.get("delivery")}
    return int(rows.get(device.identity.site, {}).get("rejected", 0))


def newest_reason(hub: Hub, device: Device) -> str:
    import sqlite3  # the reasons are for the hub's operator at its files; no route shows them yet

    with sqlite3.connect(f"file:{hub.running.state / 'hub.db'}?mode=ro", uri=True) as db:
        query = "SELECT reason FROM rejections WHERE device = ? ORDER BY n DESC LIMIT 1"
        (found,) = db.execute(query, (device.identity.device,)).fetchone()
    db.close()
    return str(found)


@pytest.mark.parametrize("number", [2**63, 2**70, -1])
def test_a_state_with_numbers_no_table_can_hold_is_refused_by_its_field(
    hub: Hub, hostile: Device, honest: Device, number: int
) -> None:
    state = {"v": 1, "session": number, "online": True, "at": "2026-05-01T12:00:00Z"}
    hostile.send(json.dumps(state).encode(), format_topic(hostile.up(Up.STATE)))
    honest.tell(f"after session {number}")
    assert f"session {number}" in newest_reason(hub, hostile)


def test_rubbish_where_blocks_and_wants_belong_holds_nobody_up(hub: Hub, hostile: Device, honest: Device) -> None:
    want = format_topic(UpWantTopic(hostile.identity.fleet, hostile.identity.device, "a" * 64))
    for payload in (b"", deep(), b"\xff" * 100, encode(Want(bytes=-5, missing="zz")), b'{"v":1,"bytes":1e400}'):
        hostile.send(payload, want)
        hostile.send(payload, format_topic(hostile.up(Up.BLOCKS)))
    honest.tell("after the blocks")


def test_a_device_cannot_speak_for_another(hub: Hub, hostile: Device, honest: Device) -> None:
    seen = hub.get("happened")["items"][0]["n"]
    topic = format_topic(honest.up(Up.EVENT))
    hostile.send(fact(name="forged"), topic)
    offline = DeviceState(session=2**40, online=False, at="2026-05-01T12:00:00Z")
    hostile.send(encode(offline), format_topic(honest.up(Up.STATE)))
    honest.tell("after the forgery")
    names = [item["name"] for item in hub.get("happened")["items"] if item["n"] > seen]
    assert names == ["after the forgery"]


def test_a_message_above_the_brokers_limit_costs_its_sender_the_connection_and_nobody_else(
    hub: Hub, hostile: Device, honest: Device
) -> None:
    hostile.client.publish(format_topic(hostile.up(Up.EVENT)), b"x" * (3 * 1024 * 1024), qos=0)
    honest.tell("after the flood")
    hostile.tell("and the sender is let in again")


def test_after_all_that_the_hub_is_the_same_process_and_every_page_answers(hub: Hub, honest: Device) -> None:
    honest.tell("the end")
    assert hub.running.process.poll() is None
    for path in ("fleet", "devices", "happened", "delivery", "releases", "models", "rollouts", "incidents", "audit"):
        hub.get(path)
    assert "failed; their senders repeat them" not in hub.running.said.read_text()
