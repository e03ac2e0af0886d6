"""A member of a fleet as real processes whose clock says 1970, or 2090, or jumps: it serves, says why it installs
nothing, and takes the order up by itself once the clock is set. Every Python of the site reads from a file how far its
clock is off.

libfaketime cannot be used: native runtimes' threads hang under it now and then.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve.trust.anchor import install
from landreeve.trust.document import document_text
from landreeve.wire.codec import encode
from landreeve.wire.messages import Desired, SignedDesired
from landreeve_agent.link.identity import Identity, save_identity
from landreeve_hub.broker.child import Kind
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.roots import REPOSITORIES, newest_root_text
from landreeve_hub.signing.targets import TargetsRepository

from tests.integration.fleet_yard import FLEET, Yard, now, open_yard
from tests.integration.test_agent_process import Site, wait_for, with_release

# Read by every Python of the site before anything else: supervisor, worker and their children.
CLOCK_OF_A_FILE = """
import datetime, os, pathlib, threading, time, time_machine

file = pathlib.Path(os.environ["CLOCK_OF_A_FILE"])
told = file.read_text()
real = time_machine.escape_hatch.time.time
clock = time_machine.travel(datetime.datetime.fromtimestamp(time.time() + float(told), datetime.UTC), tick=True).start()

def follow():
    global told
    while True:
        threading.Event().wait(0.2)
        if file.read_text() not in ("", told):
            told = file.read_text()
            clock.move_to(datetime.datetime.fromtimestamp(real() + float(told), datetime.UTC))

threading.Thread(target=follow, daemon=True).start()
"""


class OffSite(Site):
    """A site whose clock is off by the seconds in a file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "site")
        self.offset = folder / "offset"
        self._early = folder / "early"
        self._early.mkdir()
        (self._early / "sitecustomize.py").write_text(CLOCK_OF_A_FILE)

    def set_clock(self, off_s: float) -> None:
        self.offset.write_text(f"{off_s:.0f}")

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self._early), "CLOCK_OF_A_FILE": str(self.offset)}

    def start(self) -> None:
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "landreeve_agent", "--state", str(self.state), "run"]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment()
            )
        wait_for(lambda: (self.state / "run" / "ports.json").exists() and self.status(), self)

    def doctor(self) -> dict[str, dict[str, Any]]:
        command = [sys.executable, "-m", "landreeve_agent", "--state", str(self.state), "doctor", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=self.environment())
        return {check["check"]: check for check in json.loads(done.stdout)}


async def join(yard: Yard, site: Site) -> str:
    """What `landreeve join` leaves on the box; the device's name."""
    device = await yard.enrol("Test")
    keys = site.state / "keys"
    keys.mkdir(exist_ok=True, mode=0o700)
    key, certificate = (yard.folder / "Test.pem").read_text().split("-----BEGIN CERTIFICATE-----")
    (keys / "device.key").write_text(key)
    (keys / "device.crt").write_text("-----BEGIN CERTIFICATE-----" + certificate)
    (keys / "ca.crt").write_text(yard.authority.ca_pem)
    roots = {name: newest_root_text(yard.folder, name) for name in REPOSITORIES}
    install(site.state / "trust", roots, now() - timedelta(hours=1))
    identity = Identity(
        device=device.name, fleet=FLEET, site="Test", hub_url="https://127.0.0.1:1", broker_host="127.0.0.1",
        broker_port=yard.broker.port,
    )  # fmt: skip
    save_identity(site.state, identity)
    return device.name


def order(yard: Yard, device: str, generation: int = 1) -> None:
    """The hub's document of that generation, retained at the broker."""
    desired = Desired(device=device, generation=generation, issued=now().isoformat(), models=())
    signed = SignedDesired(
        generation=generation,
        document=document_text(desired),
        director=Director(yard.folder).sign(device, desired, {}, now()),
        targets=TargetsRepository(yard.folder).metadata({}),
    )
    yard.line.publish(f"lr/1/{FLEET}/dn/{device}/desired", encode(signed), True)


async def seen(ask: Callable[[], Any], site: Site, timeout_s: float = 40.0) -> Any:
    return await asyncio.to_thread(wait_for, ask, site, timeout_s)


async def test_clock_at_1970_serves_says_why_it_installs_nothing_and_recovers(tmp_path: Path) -> None:
    site = OffSite(tmp_path)
    site.init("--set", "link.reconnect_jitter_s=0.5")
    with_release(site.state)
    site.set_clock(300 - time.time())
    try:
        async with open_yard(tmp_path / "hub", Kind.MOSQUITTO) as yard:
            device = await join(yard, site)
            order(yard, device)
            await asyncio.to_thread(site.start)
            status = await seen(lambda: _refused(site.status()), site)
            assert status["time"].startswith("1970-01-01")
            assert "Nothing new is installed until the clock is set." in status["hub"]["clock"]
            assert status["generation"] == 0
            assert status["hub"]["clock_ahead_s"] < -1e9
            assert (await seen(lambda: site.infer("in-1970"), site))["id"] == "in-1970"
            found = await asyncio.to_thread(site.doctor)
            assert (found["clock"]["state"], found["clock and hub"]["state"]) == ("fail", "warn")
            assert "timedatectl" in found["clock"]["fix"]

            site.set_clock(0)
            status = await seen(lambda: _recovered(site.status()), site)
            assert status["hub"]["clock"] == ""
            assert abs(status["hub"]["clock_ahead_s"]) < 30
            assert (await seen(lambda: site.infer("today"), site))["id"] == "today"
            found = await asyncio.to_thread(site.doctor)
            assert {found[name]["state"] for name in ("clock", "clock and hub", "signed metadata")} == {"ok"}
            assert await asyncio.to_thread(site.end) == 0
    finally:
        if site.process is not None and site.process.poll() is None:
            site.kill()


CENTURY_S = 64 * 365.25 * 86_400


@pytest.mark.slow
async def test_clock_at_2090_and_jumping_while_it_runs_serves_installs_nothing_and_recovers(tmp_path: Path) -> None:
    site = OffSite(tmp_path)
    site.init("--set", "link.reconnect_jitter_s=0.5")
    with_release(site.state)
    site.set_clock(CENTURY_S)
    try:
        async with open_yard(tmp_path / "hub", Kind.MOSQUITTO) as yard:
            device = await join(yard, site)
            order(yard, device)
            await asyncio.to_thread(site.start)
            status = await seen(lambda: _refused(site.status()), site)
            assert status["time"].startswith("2090-")
            assert (status["generation"], status["hub"]["clock_ahead_s"] > 1e9) == (0, True)
            assert (await seen(lambda: site.infer("in-2090"), site))["id"] == "in-2090"
            found = await asyncio.to_thread(site.doctor)
            assert (found["clock and hub"]["state"], found["clock and hub"]["fix"]) == (
                "warn",
                "set the clock that is wrong",
            )

            site.set_clock(0)  # a century back at once: the floor that time may not fall below was not moved to 2090
            await seen(lambda: _at(site.status(), 1, jumps=1), site)
            site.set_clock(CENTURY_S)
            await seen(lambda: _at(site.status(), 1, jumps=2), site)
            order(yard, device, 2)
            await seen(lambda: _refusals(site.status()) >= 2, site)
            assert (await seen(lambda: site.infer("between"), site))["id"] == "between"
            assert site.status()["generation"] == 1
            site.set_clock(-3600)  # an hour slow is a clock that people live with
            status = await seen(lambda: _at(site.status(), 2, jumps=3), site)
            assert (await seen(lambda: site.infer("after"), site))["id"] == "after"
            await seen(lambda: site.status()["predictions_total"] == 3, site)
            assert await asyncio.to_thread(site.end) == 0
    finally:
        if site.process is not None and site.process.poll() is None:
            site.kill()


def _at(status: dict[str, Any], generation: int, jumps: int) -> bool:
    """Whether the order of that generation is in force and so many jumps were told."""
    told = sum(line["name"] == "clock.jumped" for line in status["happened"])
    return bool(status["generation"] == generation and told >= jumps)


def _refusals(status: dict[str, Any]) -> int:
    return sum(line["name"] == "update.refused" for line in status["happened"])


def _refused(status: dict[str, Any]) -> dict[str, Any] | None:
    told = any(line["name"] == "update.refused" for line in status["happened"])
    return status if told and status["hub"]["clock_ahead_s"] is not None else None


def _recovered(status: dict[str, Any]) -> dict[str, Any] | None:
    jumped = any(line["name"] == "clock.jumped" for line in status["happened"])
    return status if status["generation"] == 1 and jumped else None
