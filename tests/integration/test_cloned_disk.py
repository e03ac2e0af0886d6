"""A disk is cloned: two whole agents with one identity. Both are held, and a person is told the way out."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from landreeve.cli import Exit
from landreeve_agent.link.enrol import join

from tests.integration.hub_site import HubProcess, now, until


class Agent:
    """``landreeve run`` on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "landreeve_agent", "--state", str(self.folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    def start(self) -> None:
        flags = ("console.port=0", "serving.port=0", "link.reconnect_jitter_s=0.5")
        command = [sys.executable, "-m", "landreeve_agent", "--state", str(self.folder), "run"]
        command += [part for flag in flags for part in ("--set", flag)]
        with self.folder.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)
        self._process.wait(60)

    def says(self, words: str) -> bool:
        return words in self.folder.with_suffix(".log").read_text()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[HubProcess]:
    hub = HubProcess(tmp_path / "hub")
    await asyncio.to_thread(hub.start)
    yield hub
    await asyncio.to_thread(hub.stop)


def cloned(hub: HubProcess) -> list[dict[str, Any]]:
    return [row for row in hub.get("incidents") if row["kind"] == "cloned_identity"]


@pytest.mark.slow
async def test_cloned_box_and_its_original_are_found_held_and_told_apart(hub: HubProcess, tmp_path: Path) -> None:
    first, second = Agent(tmp_path / "first"), Agent(tmp_path / "second")
    assert first.cli("init").returncode == 0
    join(first.folder, await asyncio.to_thread(hub.token, "ewr"), now())
    await asyncio.to_thread(first.start)
    try:
        await until(lambda: hub.get("devices")[0]["online"])
        # One box that restarts is one box.
        await asyncio.to_thread(first.stop)
        shutil.copytree(first.folder, second.folder, symlinks=True)
        await asyncio.to_thread(first.start)
        await until(lambda: hub.get("devices")[0]["online"])
        assert cloned(hub) == []
        await asyncio.to_thread(second.start)
        await until(lambda: bool(cloned(hub)), 90)
        assert "its disk was probably cloned" in cloned(hub)[0]["sentence"]
        for agent in (first, second):
            await until(lambda agent=agent: agent.says("Two boxes speak under the identity"), 90)
        # The way out, as the incident says it.
        await asyncio.to_thread(second.stop)
        token = await asyncio.to_thread(hub.token, "jfk")
        done = await asyncio.to_thread(second.cli, "join", token, "--again")
        assert done.returncode == Exit.OK, done.stderr
        await asyncio.to_thread(second.start)
        await until(lambda: all(row["online"] for row in hub.get("devices")) and len(hub.get("devices")) == 2, 60)
        hub.post(f"incidents/{cloned(hub)[0]['id']}/close")
        await until(lambda: first.says("this box alone uses its identity again"), 60)
    finally:
        for agent in (first, second):
            await asyncio.to_thread(agent.stop)
