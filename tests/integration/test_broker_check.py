"""The broker's self-test finds good brokers good, and says of bad ones what is wrong and what to change."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve_hub.broker.advice import EXPECTATIONS, Finding, failed
from landreeve_hub.broker.check import check_apart
from landreeve_hub.broker.child import Broker, Kind, Program, find_program
from landreeve_hub.broker.external import External, configuration
from landreeve_hub.broker.plan import PROBES, BrokerPlan, Guests
from landreeve_hub.broker.probe import Door
from landreeve_hub.broker.selftest import SelfTest
from landreeve_hub.commands.root import build
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.incidents.incidents import Incidents, listed
from landreeve_hub.ingest.line import Address, Line
from landreeve_hub.ingest.tap import Tap
from landreeve_hub.store.database import Store
from typer.testing import CliRunner

from tests.integration.test_carrier_contract import free_port

NOW = datetime.now(UTC)
FLEET = "main"
OPEN = f"""{"user root" if os.geteuid() == 0 else ""}
allow_anonymous true
max_packet_size 100000
retain_available false
listener {{port}} 127.0.0.1
cafile {{ca}}
certfile {{certificate}}
keyfile {{key}}
"""


class House:
    """A hub's authority, and brokers that are started on one port."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.authority = Authority(root)
        self.authority.init(NOW)
        self.server = self.authority.issue_server("broker", NOW, ["127.0.0.1"])

    @property
    def door(self) -> Door:
        return Door("127.0.0.1", self.port, self.authority.ca_path, timeout_s=15.0)

    async def check(self) -> dict[str, Finding]:
        found = await asyncio.to_thread(check_apart, self.door, self.authority, FLEET, NOW)
        return {one.check: one for one in found}

    @asynccontextmanager
    async def managed(self, kind: Kind) -> AsyncIterator[Broker]:
        place = self.root / "broker"
        pair = self.server
        plan = BrokerPlan(FLEET, "127.0.0.1", self.port, place, self.authority.ca_path, pair.certificate, pair.key)
        broker = Broker(plan, find(kind), Guests(frozenset({"d-1"})))
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()

    @asynccontextmanager
    async def configured(self, kind: Kind, text: str) -> AsyncIterator[None]:
        """A broker of somebody else's, run with that configuration; what it keeps, it keeps where it is started."""
        file = self.root / "foreign.conf"
        pair = {"ca": self.authority.ca_path, "certificate": self.server.certificate, "key": self.server.key}
        for name, value in {"port": self.port, **pair}.items():
            text = text.replace(f"{{{name}}}", str(value))
        file.write_text(text)
        quiet = asyncio.subprocess.DEVNULL
        program = str(find(kind).path)
        process = await asyncio.create_subprocess_exec(
            program, "-c", str(file), stdout=quiet, stderr=quiet, cwd=self.root
        )
        try:
            async with asyncio.timeout(10):
                while not await self._answers():  # noqa: ASYNC110 - another program starts
                    await asyncio.sleep(0.05)
            yield
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


def find(kind: Kind) -> Program:
    try:
        return find_program(kind.value)
    except BrokerError as error:
        pytest.skip(str(error))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.mark.parametrize("kind", list(Kind))
async def test_the_brokers_we_run_do_all_they_must(house: House, kind: Kind) -> None:
    async with house.managed(kind):
        found = await house.check()
    assert list(found) == list(EXPECTATIONS)
    assert {name for name, one in found.items() if not one.ok} <= ({"eviction"} if kind is Kind.NATS else set())
    assert failed(list(found.values())) == []


async def test_a_broker_that_keeps_nobody_apart_is_told_what_to_change(house: House) -> None:
    words = ["broker", "check", f"mqtts://127.0.0.1:{house.port}", "--state", str(house.root), "-o", "json"]
    words += ["--wait-s", "3"]
    async with house.configured(Kind.MOSQUITTO, OPEN):
        asked = await asyncio.to_thread(CliRunner().invoke, build(), words)
    assert asked.exit_code == 3
    wrong = {row["check"]: row for row in json.loads(asked.stdout) if not row["ok"]}
    assert set(wrong) == set(EXPECTATIONS) - {"reach", "tls_version", "up", "down", "will", "persistent_session"}
    assert "up/landreeve-check-1/event" in wrong["spoofed_topic"]["happened"]
    assert "require_certificate true" in wrong["no_certificate"]["change"]["mosquitto"]
    assert set(wrong["wildcard"]["change"]) == {"mosquitto", "nats", "emqx"}


async def test_a_broker_of_another_authority_is_not_believed(house: House, tmp_path: Path) -> None:
    stranger = House(tmp_path / "stranger")
    async with stranger.configured(Kind.MOSQUITTO, OPEN):
        house.port = stranger.port
        found = await house.check()
    assert list(found) == ["reach"]
    assert "certificate verify failed" in found["reach"].happened


async def test_nobody_there_is_said_with_the_address(house: House) -> None:
    found = await house.check()
    assert list(found) == ["reach"]
    assert f"127.0.0.1:{house.port}" in found["reach"].happened


def at_home(house: House, files: Mapping[str, str], kind: Kind) -> str:
    """The written configuration with this machine's paths and port in it."""
    folder = house.root / "etc"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    text = files["landreeve.conf"]
    swaps = {"landreeve/ca.crt": house.authority.ca_path, "landreeve/broker.crt": house.server.certificate}
    swaps |= {"landreeve/broker.key": house.server.key, "landreeve.acl": folder / "landreeve.acl"}
    for old, new in swaps.items():
        for base in ("/etc/mosquitto/", "/etc/nats/"):
            text = text.replace(base + old, str(new))
    text = text.replace("/var/lib/nats/jetstream", str(folder / "jetstream"))
    if kind is Kind.NATS:
        return text.replace("port: 8883", 'listen: "127.0.0.1:{port}"') + 'listen: "127.0.0.1:-1"\n'
    return "user root\n" + text.replace("listener 8883", "listener {port} 127.0.0.1")


@pytest.mark.parametrize("kind", list(Kind))
async def test_what_we_write_for_other_peoples_brokers_makes_them_do_all_they_must(house: House, kind: Kind) -> None:
    files = configuration(External(kind.value), FLEET, Guests(frozenset({"d-1"}), frozenset({"d-2"})))
    async with house.configured(kind, at_home(house, files, kind)):
        found = await house.check()
    assert failed(list(found.values())) == []
    assert len(found) == len(EXPECTATIONS)
    kept = house.root / ("mosquitto.db" if kind is Kind.MOSQUITTO else "etc/jetstream")
    assert kept.exists()  # and not in the folder the tests are run from


def test_what_we_write_for_emqx_names_every_rule() -> None:
    files = configuration(External.EMQX, "north.sea", Guests(frozenset({"d-1"}), frozenset({"d-2"})))
    acl = [line for line in files["acl.conf"].splitlines() if not line.startswith("%%")]
    assert acl[0] == '{deny, {user, "d-2"}, all, ["#"]}.'
    assert '{allow, all, publish, ["lr/1/north.sea/up/${username}/#"]}.' in acl
    assert acl[-1] == "{deny, all}."
    assert "fail_if_no_peer_cert = true" in files["base.hocon"]
    assert all("NEVER RUN BY US" in text.splitlines()[0] for text in files.values())
    assert [kind for kind in External if not kind.proven] == [External.EMQX]


def test_what_we_write_for_emqx_can_be_read_by_erlang(tmp_path: Path) -> None:
    if (erlang := shutil.which("erl")) is None:
        pytest.skip("no erl on this machine (Debian: apt-get install erlang-base)")
    file = tmp_path / "acl.conf"
    guests = Guests(frozenset({"d-1"}), frozenset({"d-2", "d.3"}))
    file.write_text(configuration(External.EMQX, "north.sea", guests)["acl.conf"])
    say = f'{{ok, Terms}} = file:consult("{file}"), io:format("~w ~w", [length(Terms), lists:last(Terms)]), halt().'
    done = subprocess.run([erlang, "-noshell", "-eval", say], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "8 {deny,all}"), done.stderr


@pytest.mark.slow
async def test_an_unsafe_broker_is_an_incident_until_it_is_mended(
    house: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path / "hub.db")
    pair = house.authority.issue_client("hub", NOW)
    line = Line(Address("127.0.0.1", house.port, house.authority.ca_path, pair.certificate, pair.key), FLEET)
    facts: list[str] = []
    tap = Tap(lambda message: facts.append(message.topic), FLEET, PROBES)
    line.on_message = tap.take
    test = SelfTest(
        house.door, house.authority, FLEET, line=line, tap=tap, store=store, incidents=Incidents(), clock=lambda: NOW
    )
    with pytest.raises(BrokerError, match="not connected"):
        await test.run()
    line.start()
    async with house.configured(Kind.MOSQUITTO, OPEN):
        await connected(line)
        await test.judge()
        (incident,) = await store.read(listed)
        assert (incident["kind"], incident["state"], incident["severity"]) == ("broker_unsafe", "open", "error")
        assert "wildcard" in incident["subject"]["checks"]
        assert any(record.levelno == logging.CRITICAL for record in caplog.records)
    async with house.managed(Kind.MOSQUITTO):
        await connected(line)
        assert failed(await test.judge()) == []
        assert [one["state"] for one in await store.read(listed)] == ["closed"]
    assert facts == []  # what the probes say is no fact
    await asyncio.to_thread(line.stop)
    store.close()


async def connected(line: Line) -> None:
    async with asyncio.timeout(20):
        while not line.connected:  # noqa: ASYNC110 - another thread connects
            await asyncio.sleep(0.05)
