"""The whole hub as a process: up, alone on its folder, found by its command line, and gone without a trace."""

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

UP_S = 30.0
Start = Callable[..., "Running"]


class Running:
    """A hub process and what it said."""

    def __init__(self, state: Path, *settings: str) -> None:
        self.state = state
        state.parent.mkdir(parents=True, exist_ok=True)
        self.said = state.parent / f"said-{time.monotonic_ns()}.txt"
        flags = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "landreeve_hub", "serve", "--state", str(state), *flags]
        with self.said.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out)

    def up(self) -> "Running":
        """Wait until its API answers."""
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.said.read_text()
            try:
                if self.ports()["pid"] == self.process.pid and self.get("health").status_code == 200:
                    return self
            except (OSError, ValueError, KeyError, httpx2.TransportError):
                pass  # not yet: the deadline judges
            time.sleep(0.1)
        raise AssertionError(f"the hub did not come up:\n{self.said.read_text()}")

    def ports(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "run" / "ports.json").read_text())
        return found

    def get(self, path: str) -> httpx2.Response:
        token = (self.state / "run" / "admin-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.get(f"{self.ports()['url']}/api/v1/{path}", headers=headers, timeout=10)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=20)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts hubs in a folder with a space in its name; whatever is left is killed."""
    started: list[Running] = []

    def run(*settings: str) -> Running:
        anywhere = ("http.port=0", "https.port=0", "broker.port=0")
        started.append(Running(tmp_path / "a folder" / "hub", *(settings or anywhere)))
        return started[-1]

    yield run
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.mark.parametrize("kind", ["mosquitto", "nats"])
def test_a_hub_comes_up_says_where_it_is_and_ends_with_its_broker(start: Start, kind: str) -> None:
    hub = start("http.port=0", "https.port=0", "broker.port=0", f"broker.kind={kind}").up()
    assert hub.get("fleet").json()["counts"]["total"] == 0
    assert re.search(r"one-time code to sign in: \S{4}(-\S{4}){3}", hub.said.read_text())
    for secret in ("run/admin-token", "keys/root-1.pem", "ca/ca.key"):
        assert (hub.state / secret).stat().st_mode & 0o077 == 0, secret
    broker = hub.children()
    assert broker
    assert hub.end(signal.SIGINT) == 0
    assert not any(child.is_running() for child in broker)


def test_enrolment_is_served_under_the_hubs_own_authority(start: Start) -> None:
    hub = start().up()
    context = ssl.create_default_context(cafile=str(hub.state / "ca" / "ca.crt"))
    url = f"https://127.0.0.1:{hub.ports()['https']}"
    assert "BEGIN CERTIFICATE" in httpx2.get(f"{url}/enrol/v1/ca", verify=context).text
    assert httpx2.get(f"{url}/api/v1/health", verify=context).json()["status"] == "ok"
    refused = httpx2.post(f"{url}/enrol/v1/enrol", json={"secret": "guessed", "csr": "none"}, verify=context)
    assert refused.status_code == 422


def test_a_second_hub_on_the_folder_is_refused_with_the_reason(start: Start) -> None:
    first = start().up()
    second = start()
    assert second.process.wait(timeout=20) == 6
    assert f"process {first.process.pid}" in second.said.read_text()
    assert first.get("health").status_code == 200


def test_init_makes_what_serve_needs_and_is_refused_beside_it(start: Start, tmp_path: Path) -> None:
    state = tmp_path / "a folder" / "hub"
    settings = [part for name in ("http", "https", "broker") for part in ("--set", f"{name}.port=0")]
    made = _init(state, *settings, "--set", "fleet=north")
    assert made.returncode == 0, made.stderr
    assert (state / "ca" / "ca.crt").exists()
    hub = start("fleet=north").up()
    assert hub.ports()["wanted"] == {"http": 0, "https": 0, "broker": 0}
    refused = _init(state)
    assert (refused.returncode, "Traceback" in refused.stderr) == (6, False)
    assert _init(tmp_path / "other", "--set", "fleet=a/b").returncode == 2


def _init(state: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "landreeve_hub", "init", "--state", str(state), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_killed_hub_takes_its_broker_along_and_comes_back_on_the_same_ports(start: Start) -> None:
    hub = start().up()
    before, broker = hub.ports(), hub.children()
    hub.end(signal.SIGKILL)
    psutil.wait_procs(broker, timeout=10)
    assert not any(child.is_running() for child in broker)
    after = start().up().ports()
    assert [after[name] for name in ("http", "https", "broker")] == [before[n] for n in ("http", "https", "broker")]


def test_a_taken_port_is_left_and_the_next_one_said(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        hub = start(f"http.port={port}", "https.port=0", "broker.port=0").up()
        assert hub.ports()["http"] != port
        assert f"port {port} is taken; http is on port {hub.ports()['http']} instead" in hub.said.read_text()


def test_a_killed_broker_is_started_again(start: Start) -> None:
    hub = start().up()
    (broker,) = hub.children()
    os.kill(broker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and [child.pid for child in hub.children()] in ([], [broker.pid]):
        time.sleep(0.1)
    assert [child.pid for child in hub.children()] not in ([], [broker.pid])
    assert hub.get("health").status_code == 200


def test_open_event_streams_do_not_hold_the_hub_back(start: Start) -> None:
    hub = start().up()
    token = (hub.state / "run" / "admin-token").read_text().strip()

    async def watch_to_the_end() -> bytes:
        async with (
            httpx2.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {token}"}) as client,
            client.stream("GET", f"{hub.ports()['url']}/api/v1/events") as answer,
        ):
            parts = answer.aiter_raw()
            first = await anext(parts)
            hub.process.send_signal(signal.SIGTERM)
            async for _ in parts:
                continue
            return first

    assert asyncio.run(watch_to_the_end()).startswith(b"retry:")
    assert hub.process.wait(timeout=10) == 0


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("broker.url=http://elsewhere", "write it as mqtts://host:8883"),
        ("htp.port=1", "unknown setting 'htp.port'; did you mean"),
        ("fleet=a/b", "is no identifier"),
        ("http.host=192.0.2.1", "http: cannot listen on 192.0.2.1:"),
    ],
)
def test_a_setting_that_cannot_be_is_said_in_one_sentence(start: Start, setting: str, sentence: str) -> None:
    hub = start("https.port=0", "broker.port=0", setting)
    assert hub.process.wait(timeout=20) == 2
    said = hub.said.read_text()
    assert sentence in said
    assert "Traceback" not in said
