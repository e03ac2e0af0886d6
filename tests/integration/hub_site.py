"""A real hub process, and boxes of which only the link runs: to join, renew, move and be thrown out in seconds."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
from landreeve.blobs.store import BlobStore
from landreeve.trust.verdict import Believed
from landreeve.wire.messages import Command, Event, SignedDesired
from landreeve_agent.config import LinkSettings, StateFolder
from landreeve_agent.link.enrol import join
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.link.renewal import Renewer
from landreeve_agent.membership import Membership
from landreeve_agent.store.database import Database

UP_S = 40.0
LINK = LinkSettings(reconnect_jitter_s=0.3, renew_look_s=0.3, renew_jitter_s=0.0)


def now() -> datetime:
    return datetime.now(UTC)


class HubProcess:
    """``landreeve-hub serve`` on a folder."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._settings = ("http.port=0", "https.port=0", "broker.port=0", "broker.self_test=false", *settings)

    def start(self) -> None:
        flags = [part for setting in self._settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "landreeve_hub", "serve", "--state", str(self.folder), *flags]
        self.log = self.folder.with_suffix(".log")
        with self.log.open("ab") as log:
            environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
            self._process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        deadline = time.monotonic() + UP_S
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError, httpx2.HTTPError):
            ports = json.loads((self.folder / "run" / "ports.json").read_text())
            return ports["pid"] == self._process.pid and isinstance(self.get("fleet"), dict)
        return False

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGABRT)  # its threads' stacks go to the log
            self._process.wait(20)
            raise

    def kill(self) -> None:
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    def call(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        url = json.loads((self.folder / "run" / "ports.json").read_text())["url"]
        token = (self.folder / "run" / "admin-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx2.request(method, f"{url}/api/v1/{path}", headers=headers, json=body, timeout=30)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.call("POST", path, body or {})
        assert answer.status_code < 400, answer.text
        return answer.json()

    def token(self, site: str, *, replaces: bool = False) -> str:
        return str(self.post("enrolment-tokens", {"site": site, "replaces": replaces})["token"])


class Box:
    """A box whose link runs in this process."""

    def __init__(self, folder: Path, link: LinkSettings = LINK) -> None:
        self.state = StateFolder(folder)
        self.state.prepare()
        self.events: list[Event] = []
        self.believed: list[int] = []
        self._link = link

    def join(self, token: str) -> str:
        self.device = join(self.state.root, token, now()).device
        return self.device

    async def start(self) -> None:
        self._database = Database(self.state.database)
        self.member = Membership(
            self.state, Outbox(self._database), BlobStore(self.state.blobs), self._link, now, status=lambda: None,
            on_command=self._command, on_desired=self._desired, on_joined=lambda: None, on_event=self.events.append,
        )  # fmt: skip
        self.member.look()
        self._task = asyncio.create_task(self.member.run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._database.close)

    @property
    def connected(self) -> bool:
        return self.member.view(0).state == "in_sync"

    @property
    def renewer(self) -> Renewer:
        joined = self.member._joined
        assert joined is not None
        return joined.renewer

    async def _command(self, _command: Command) -> None:
        raise AssertionError("no command is sent here")

    async def _desired(self, signed: SignedDesired) -> None:
        verdict = await asyncio.to_thread(self.member.verify, signed, now())
        if isinstance(verdict, Believed):
            self.believed.append(verdict.desired.generation)
            self.member.trust(verdict.desired.authorities)


async def until(check: Any, seconds: float = 40.0) -> None:
    """Wait for something that another process brings about."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110  another process brings it about
            await asyncio.sleep(0.1)
