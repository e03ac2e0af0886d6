"""A whole site as real processes, working alone: serves, survives kills, ends cleanly, says what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from landreeve_agent.serving.control import Plan
from landreeve_agent.update.pointer import release_folder, write_pointer
from landreeve_agent.update.standing import Installed

from tests.agent.onnx_models import body, version, write_release

STARTED_S = 40.0


class Site:
    """A state folder and the supervisor that runs on it."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None
        self.log = state.parent / "agent.log"

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "landreeve_agent", "--state", str(self.state), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def init(self, *more: str) -> None:
        done = self.cli("init", "--site", "Test", "--set", "console.port=0", "--set", "serving.port=0", *more)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        (self.state / "run" / "ports.json").unlink(missing_ok=True)
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "landreeve_agent", "--state", str(self.state), "run"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_for(lambda: (self.state / "run" / "ports.json").exists() and self.status(), self)

    def ports(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "run" / "ports.json").read_bytes())
        return found

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("GET", "/api/v1/status")
        return answer

    def call(self, method: str, path: str, document: Any = None) -> Any:
        token = (self.state / "tokens" / "api").read_text().strip()
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports()['console']}{path}", data, method=method)
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own loopback URL
            return json.loads(answer.read())

    def infer(self, name: str) -> Any:
        document = json.dumps(body(id=name)).encode()
        url = f"http://127.0.0.1:{self.ports()['serving']}/v2/models/delay/infer"
        with urllib.request.urlopen(urllib.request.Request(url, document), timeout=20) as answer:
            return json.loads(answer.read())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def wait_for(ask: Callable[[], Any], site: Site, timeout_s: float = STARTED_S) -> Any:
    """The first true answer; fails with the site's log when there is none in time."""
    deadline = time.monotonic() + timeout_s
    trouble: object = None
    while time.monotonic() < deadline:
        try:
            if answer := ask():
                return answer
        except (OSError, ValueError, KeyError) as error:
            trouble = error
        if site.process is not None and site.process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"not in time ({trouble}):\n{site.log.read_text()[-3000:]}")


def with_release(state: Path, **changes: Any) -> None:
    """A release as an earlier life of this box left it: materialised, with its pointer."""
    made = version(state, "1.0.0")
    write_release(release_folder(state / "models", "delay", made.release), **changes)
    plan = msgspec.json.encode(Plan()).decode()
    write_pointer(state / "models", "delay", Installed(made.release, "1.0.0", plan), None)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "a site's state")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_alone_it_serves_what_it_served_and_ends_with_its_worker(site: Site) -> None:
    site.init()
    with_release(site.state)
    site.start()
    assert 0.0 < site.infer("a")["outputs"][0]["data"][0] < 1.0
    wait_for(lambda: site.status()["predictions_total"] == 1, site)
    status = site.status()
    assert status["hub"]["state"] == "not_joined"
    assert (status["models"][0]["version"], status["models"][0]["health"]) == ("1.0.0", "working")
    assert status["models"][0]["purpose"] == "tests"
    assert status["runs_on"]
    worker = status["worker"]["pid"]
    assert site.end() == 0
    assert not psutil.pid_exists(worker)


def test_a_killed_worker_is_back_counted_and_shown(site: Site) -> None:
    site.init()
    with_release(site.state)
    site.start()
    worker = wait_for(lambda: site.status()["worker"]["pid"], site)
    os.kill(worker, signal.SIGSEGV)
    assert site.infer("a")["id"] == "a"
    wait_for(lambda: site.status()["worker"]["restarts"] == 1, site)
    happened = wait_for(lambda: [e for e in site.status()["happened"] if e["name"] == "worker.restarted"], site)
    assert "SIGSEGV" in happened[0]["sentence"]


def test_kill_nine_of_the_supervisor_loses_and_doubles_nothing(site: Site) -> None:
    site.init()
    with_release(site.state)
    site.start()
    answered: set[str] = set()
    for n in range(90):
        if n in {30, 60}:
            site.kill()
            site.start()
        try:
            answered.add(site.infer(f"row-{n}")["id"])
        except urllib.error.URLError:
            # The worker ends with its supervisor; the application asks again, as applications do.
            wait_for(lambda name=f"row-{n}": answered.add(site.infer(name)["id"]) is None, site)
    assert len(answered) == 90
    wait_for(lambda: site.status()["predictions_total"] >= 90, site)
    status = site.status()
    assert status["predictions_total"] == 90
    assert status["models"][0]["samples"] == 90


def test_a_second_run_on_the_same_state_is_refused_with_the_reason(site: Site) -> None:
    site.init()
    site.start()
    assert site.process is not None
    second = site.cli("run")
    assert second.returncode == 6
    assert f"process {site.process.pid}" in second.stderr
    assert site.status()["site"] == "Test"


def test_without_a_model_there_is_no_worker_and_intake_collects(site: Site) -> None:
    site.init()
    site.start()
    columns = [{"name": "x", "kind": "number"}]
    definition = {"name": "m", "purpose": "p", "label": "y", "columns": columns}
    site.call("POST", "/api/v1/models", definition)
    samples = [{"id": str(n), "at": "2026-01-01T00:00:00Z", "row": {"x": n}} for n in range(5)]
    assert site.call("POST", "/api/v1/models/m/samples", {"samples": samples}) == {"accepted": 5, "repeated": 0}
    status = wait_for(lambda: (s := site.status())["models"] and s["models"][0]["samples"] == 5 and s, site)
    assert status["worker"]["pid"] == 0
    assert status["models"][0]["health"] == "collecting"
    assert "Collecting data for m" in status["verdict"]["detail"]


def test_bad_settings_still_open_the_console_which_says_what_is_wrong(site: Site) -> None:
    site.init()
    site.start()
    assert site.end() == 0
    with (site.state / "agent.toml").open("a") as settings:
        settings.write("\n[consol]\nport = 1\n")
    site.start()
    verdict = site.status()["verdict"]
    assert verdict["level"] == "error"
    assert "unknown setting 'consol.port'; did you mean 'console.port'?" in verdict["sentence"]
    assert site.cli("config", "validate").returncode == 3


def test_a_busy_port_moves_on_and_says_so(site: Site, tmp_path: Path) -> None:
    site.init()
    site.start()
    busy = site.ports()["console"]
    other = Site(tmp_path / "other" / "state")
    other.init("--set", f"console.port={busy}")
    try:
        other.start()
        assert other.ports()["console"] != busy
        assert f"console.port {busy} is busy" in other.status()["verdict"]["detail"]
        assert other.end() == 0
    finally:
        if other.process is not None and other.process.poll() is None:
            other.kill()


def test_the_living_supervisor_holds_no_ml_runtime(site: Site) -> None:
    site.init()
    with_release(site.state)
    site.start()
    assert site.process is not None
    maps = Path(f"/proc/{site.process.pid}/maps").read_text()
    assert [name for name in ("onnxruntime", "openvino", "libtorch", "sklearn", "pandas") if name in maps] == []
