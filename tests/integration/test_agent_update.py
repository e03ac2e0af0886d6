"""A new version of the agent itself: pushed, approved, rolled out to a real site that a launcher keeps, and back.

The wheels hold nothing but a higher version, or one broken line: everything else is found in the base environment.
"""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest


class Fleet:
    """One hub with its broker, and one site whose agent is kept by the launcher."""

    def __init__(self, root: Path) -> None:
        self.hub_state, self.site = root / "hub", root / "site"
        self.log = root / "log.txt"
        self.children: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with self.log.open("ab") as out:
            child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=out, stderr=out)
        self.children.append(child)
        return child

    def hub(self, *arguments: str) -> Any:
        return self._say("landreeve_hub", *arguments, "--state", str(self.hub_state), "-o", "json")

    def agent(self, *arguments: str) -> Any:
        return self._say("landreeve_agent", "--state", str(self.site), *arguments)

    def _say(self, *command: str) -> Any:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("LANDREEVE_")}
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, check=False, env=environ, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}\n{self.said()}"
        return json.loads(done.stdout) if done.stdout.strip().startswith(("{", "[")) else done.stdout

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def until(self, what: str, ask: Callable[[], Any], seconds: float = 90.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = ask()
            if found:
                return found
            time.sleep(1.0)
        raise AssertionError(f"{what} did not come to be:\n{self.said()}")

    def close(self) -> None:
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for child in reversed(self.children):
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    # --- what is done

    def open(self, keep: Callable[[], object] | None = None) -> None:
        """Hub and site, joined; the launcher keeps the agent unless somebody else does."""
        ports = ("http.port=0", "https.port=0", "broker.port=0")
        flags = [part for setting in ports for part in ("--set", setting)]
        self._say("landreeve_hub", "init", "--state", str(self.hub_state), *flags)
        self.start("landreeve_hub", "serve", "--state", str(self.hub_state))
        self.until("the hub", (self.hub_state / "run" / "ports.json").exists)
        self.until("its API", self._answers)
        token = self.hub("device", "token", "shop")["token"]
        self.agent("init", "--set", "link.reconnect_jitter_s=0.5")
        self.agent("join", token)
        if keep is not None:
            keep()
        launch = ("--state", str(self.site), "--set", "console.port=0", "--set", "serving.port=0")
        if keep is None:
            self.start("landreeve_agent.launch.launcher", *launch)
        self.until("the site", lambda: [d for d in self.devices() if d["online"]])

    def _answers(self) -> bool:
        done = subprocess.run(
            [sys.executable, "-m", "landreeve_hub", "device", "list", "--state", str(self.hub_state)],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def devices(self) -> list[dict[str, Any]]:
        found = self.hub("device", "list")
        return list(found["items"] if isinstance(found, dict) else found)

    def version(self) -> str:
        return str(self.devices()[0].get("agent", ""))

    def roll_out(self, wheel: Path) -> str:
        pushed = self.hub("agent", "push", str(wheel))
        self.hub("model", "approve", pushed["digest"], "--emergency", "a test has one person only")
        plan = json.dumps({"probation": {"max_s": 60.0}})
        started = self.hub("rollout", "start", f"landreeve-agent@{pushed['version']}", "--plan", plan)
        self.hub("rollout", "approve", started["id"], "--emergency", "a test has one person only")
        return str(started["id"])

    def rollout(self, number: str) -> dict[str, Any]:
        found: dict[str, Any] = self.hub("rollout", "status", number)
        return found


# Passes its self-test, and never comes up.
BROKEN = {"sitecustomize.py": "import sys\nif sys.argv[1:2] == ['--state']: sys.exit('built in haste')\n"}


def wheel(folder: Path, version: str, more: Mapping[str, str] = {}) -> Path:
    own = f"landreeve-{version}.dist-info"
    files = {
        f"{own}/METADATA": f"Metadata-Version: 2.1\nName: landreeve\nVersion: {version}\n",
        f"{own}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **more,
    }
    files[f"{own}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{own}/RECORD"])
    path = folder / f"landreeve-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(300)
def test_agent_takes_a_new_version_of_itself_and_leaves_one_that_does_not_come_up(fleet: Fleet, tmp_path: Path) -> None:
    fleet.open()
    first = fleet.roll_out(wheel(tmp_path, "9.9.8"))
    done = fleet.until("the first rollout", lambda: (r := fleet.rollout(first))["state"] != "RUNNING" and r)
    assert done["state"] == "FINISHED", f"{done}\n{fleet.said()}"
    fleet.until("the new version", lambda: fleet.version() == "9.9.8")

    second = fleet.roll_out(wheel(tmp_path, "9.9.9", BROKEN))
    done = fleet.until(
        "the second rollout", lambda: (r := fleet.rollout(second))["state"] not in {"RUNNING", "ROLLING_BACK"} and r
    )
    assert done["state"] == "ROLLED_BACK", f"{done}\n{fleet.said()}"
    assert fleet.version() == "9.9.8"
    assert [d["online"] for d in fleet.devices()] == [True]
