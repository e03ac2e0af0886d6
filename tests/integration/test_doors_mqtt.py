"""Models asked over a real mosquitto: both protocol versions, repeats, overload, a broker that goes away."""

import asyncio
import json
import queue
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from landreeve_agent.doors.broker import BrokerOptions
from landreeve_agent.doors.child import Door
from landreeve_agent.doors.connection import Server
from landreeve_agent.doors.mqtt import MqttOptions
from landreeve_agent.errors import RoomFailedError
from landreeve_hub.broker.child import Kind, find_program
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.agent.onnx_models import body
from tests.agent.serving_worker import ServingWorker, serving_worker
from tests.fakes.mqtt_client import part

WAIT_S = 20.0
ROW = {"hour": 9.5, "wind": 4.0, "carrier": "UA"}


class SiteBroker:
    """A broker of the site's own, with nothing set but a port; NATS is one that knows no MQTT 5."""

    def __init__(self, folder: Path, kind: Kind = Kind.MOSQUITTO, more: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._program = find_program(kind.value)
        self._config = folder / "broker.conf"
        if kind is Kind.MOSQUITTO:
            self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n{more}")
        else:
            self._config.write_text(
                f"listen: '127.0.0.1:-1'\nserver_name: site\njetstream {{ store_dir: '{folder}/js' }}\n"
                f"mqtt {{ host: '127.0.0.1', port: {self.port} }}\n"
            )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(self._program.path), "-c", str(self._config)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=self._config.parent)
        until(self._listens)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Till:
    """A machine of the site that asks over MQTT."""

    def __init__(self, port: int, protocol: int, topics: str) -> None:
        self.got: queue.Queue[tuple[str, dict[str, Any], bytes]] = queue.Queue()
        self._subscribed: queue.Queue[int] = queue.Queue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTProtocolVersion(protocol))
        self._client.on_message = lambda _c, _d, m: self.got.put(
            (m.topic, json.loads(m.payload), getattr(m.properties, "CorrelationData", b""))
        )
        self._client.on_connect = lambda client, *_: client.subscribe(topics, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.put(1)
        self._client.reconnect_delay_set(0.1, 0.2)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._subscribed.get(timeout=WAIT_S)

    def ask(self, topic: str, document: Any, *, response: str = "", correlation: bytes = b"", **options: Any) -> None:
        payload = document if isinstance(document, bytes) else json.dumps(document)
        properties = None
        if response:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.ResponseTopic = response
            properties.CorrelationData = correlation
        self._client.publish(topic, payload, properties=properties, **{"qos": 1, **options})

    def answer(self) -> tuple[str, dict[str, Any], bytes]:
        return self.got.get(timeout=WAIT_S)

    def close(self) -> None:
        part(self._client)


def until(holds: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingWorker]:
    if shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin") is None:
        pytest.skip("no mosquitto on this machine")
    with serving_worker(tmp_path_factory.mktemp("worker")) as made:
        made.serve()
        yield made


@contextmanager
def bridged(worker: ServingWorker, broker: SiteBroker, **changes: Any) -> Iterator[None]:
    """The door's real process, kept as the supervisor keeps it."""
    wanted = BrokerOptions(host="127.0.0.1", port=broker.port, prefix="shop", client_id="box")
    options = MqttOptions(server=Server(*worker.address), broker=wanted, **changes)
    ending = asyncio.Event()

    async def kept() -> None:
        room = asyncio.create_task(Door("mqtt", "landreeve_agent.doors.mqtt", lambda: options).run())
        await ending.wait()
        room.cancel()
        await asyncio.gather(room, return_exceptions=True)

    life = asyncio.run_coroutine_threadsafe(kept(), worker.loop)
    try:
        yield
    finally:
        worker.loop.call_soon_threadsafe(ending.set)
        life.result(30)


@pytest.fixture(scope="module")
def site(worker: ServingWorker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteBroker]:
    broker = SiteBroker(tmp_path_factory.mktemp("broker"))
    broker.start()
    with bridged(worker, broker):
        ready = Till(broker.port, paho.MQTTv5, "shop/delay/response/ready")
        ready.ask("shop/delay/request/ready", {"id": "ready", "row": ROW})
        while ready.got.empty():  # until the door has subscribed nobody hears
            ready.ask("shop/delay/request/ready", {"id": "ready", "row": ROW})
            time.sleep(0.1)
        ready.close()
        yield broker
    broker.stop()


@pytest.fixture
def till5(site: SiteBroker) -> Iterator[Till]:
    till = Till(site.port, paho.MQTTv5, "shop/answers/#")
    yield till
    till.close()


@pytest.fixture
def till3(site: SiteBroker) -> Iterator[Till]:
    till = Till(site.port, paho.MQTTv311, "shop/+/response/till-3")
    yield till
    till.close()


def rows_of(worker: ServingWorker, name: str) -> int:
    return sum(line.id == name for line in worker.captured())


def test_mqtt_5_answers_to_the_response_topic_with_its_correlation(till5: Till, worker: ServingWorker) -> None:
    till5.ask("shop/delay/request", body(id="five"), response="shop/answers/a", correlation=b"\x00\x07")
    topic, answer, correlation = till5.answer()
    assert (topic, answer["id"], correlation) == ("shop/answers/a", "five", b"\x00\x07")
    assert 0 < answer["outputs"][0]["data"][0] < 1
    assert rows_of(worker, "five") == 1


def test_a_repeated_request_gets_the_same_answer_and_one_row(till5: Till, worker: ServingWorker) -> None:
    for _ in range(3):
        till5.ask("shop/delay/request", {"row": ROW}, response="shop/answers/b", correlation=b"same")
        topic, answer, _ = till5.answer()
        assert topic == "shop/answers/b"
    assert answer["id"].startswith("mqtt-")
    assert set(answer["outputs"]) == {"probability"}
    assert rows_of(worker, answer["id"]) == 1


def test_mqtt_3_answers_to_the_client_by_id(till3: Till) -> None:
    till3.ask("shop/delay/request/till-3", {"id": "three", "row": ROW})
    till3.ask("shop/delay/request", {"id": "four", "client": "till-3", "row": ROW}, qos=0)
    answers = {answer["id"]: answer for _, answer, _ in (till3.answer(), till3.answer())}
    assert answers["three"]["outputs"] == answers["four"]["outputs"]
    assert answers["three"]["version"] == "1.0.0"


@pytest.mark.parametrize(
    ("topic", "payload", "status", "words"),
    [
        ("shop/delay/request/till-3", b"{", 400, "payload"),
        ("shop/delay/request/till-3", {"id": "x", "row": {**ROW, "hour": 99}}, 400, "hour"),
        ("shop/price/request/till-3", {"id": "x", "row": ROW}, 404, "there are: delay"),
    ],
)
def test_a_refusal_is_told_with_its_sentence(till3: Till, topic: str, payload: Any, status: int, words: str) -> None:
    till3.ask(topic, payload)
    _, answer, _ = till3.answer()
    assert (answer["status"], answer["again"], words in answer["error"]) == (status, False, True), answer


def test_a_retained_request_is_not_asked_again(till3: Till, site: SiteBroker, worker: ServingWorker) -> None:
    till3.ask("shop/delay/request/till-3", {"id": "kept", "row": ROW}, retain=True)
    assert till3.answer()[1]["id"] == "kept"
    till3.ask("shop/delay/request/till-3", b"", retain=True)  # an empty payload takes it back, and is malformed
    assert till3.answer()[1]["status"] == 400


def test_more_requests_than_may_wait_are_told_to_come_again(worker: ServingWorker, tmp_path: Path) -> None:
    broker = SiteBroker(tmp_path, more="max_inflight_messages 0\nmax_queued_messages 0\n")
    broker.start()
    with bridged(worker, broker, queue=1, parallel=1):
        till = Till(broker.port, paho.MQTTv5, "shop/delay/response/t")
        until(lambda: _asked(till, "up"))
        while not till.got.empty():
            till.got.get()
        for number in range(300):
            till.ask("shop/delay/request/t", {"id": f"n{number}", "row": ROW})
        answers = [till.answer()[1] for _ in range(300)]
        till.close()
    broker.stop()
    assert {answer["id"] for answer in answers} >= {f"n{number}" for number in range(300)}
    busy = [answer for answer in answers if "error" in answer]
    assert {(answer["status"], answer["again"]) for answer in busy} == {(429, True)}


def test_requests_sent_while_the_door_is_away_are_answered_when_it_is_back(
    worker: ServingWorker, tmp_path: Path
) -> None:
    broker = SiteBroker(tmp_path)
    broker.start()
    till = Till(broker.port, paho.MQTTv311, "shop/+/response/t")
    with bridged(worker, broker):
        until(lambda: _asked(till, "first"))
    till.ask("shop/delay/request/t", {"id": "late", "row": ROW})
    with bridged(worker, broker):
        until(lambda: _heard(till, "late"))
    till.close()
    broker.stop()


def test_a_broker_that_comes_back_is_found_again(worker: ServingWorker, tmp_path: Path) -> None:
    broker = SiteBroker(tmp_path)
    broker.start()
    till = Till(broker.port, paho.MQTTv311, "shop/+/response/t")
    with bridged(worker, broker):
        until(lambda: _asked(till, "before"))
        broker.stop()
        broker.start()
        until(lambda: _asked(till, "after"))
    till.close()
    broker.stop()


def test_a_broker_that_knows_no_mqtt_5_is_asked_in_the_older_way(worker: ServingWorker, tmp_path: Path) -> None:
    broker = SiteBroker(tmp_path, Kind.NATS)
    broker.start()
    till = Till(broker.port, paho.MQTTv311, "shop/+/response/t")
    with bridged(worker, broker):
        until(lambda: _asked(till, "old"))
    till.close()
    broker.stop()


async def test_a_door_whose_files_are_missing_says_so_and_ends(tmp_path: Path) -> None:
    wanted = BrokerOptions(
        host="127.0.0.1", port=9, prefix="shop", client_id="box", username="u", password_file=str(tmp_path / "none")
    )
    options = MqttOptions(server=Server("127.0.0.1", 9), broker=wanted)
    with pytest.raises(RoomFailedError, match=r"password_file .*No such file"):
        await Door("mqtt", "landreeve_agent.doors.mqtt", lambda: options).run()


def heard_after_asking(till: Till, document: dict[str, Any]) -> dict[str, Any] | None:
    """Ask, and see whether an answer to it has come."""
    till.ask("shop/delay/request/t", document, qos=0)
    time.sleep(0.1)
    while not till.got.empty():
        answer = till.got.get()[1]
        if answer.get("id") == document["id"]:
            return answer
    return None


def _asked(till: Till, name: str) -> bool:
    """Ask, and see whether an answer to it has come; until the door listens nobody hears."""
    till.ask("shop/delay/request/t", {"id": name, "row": ROW}, qos=0)
    time.sleep(0.1)
    return _heard(till, name)


def _heard(till: Till, name: str) -> bool:
    while not till.got.empty():
        if till.got.get()[1].get("id") == name:
            return True
    return False
