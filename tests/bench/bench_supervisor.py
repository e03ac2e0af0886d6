"""The supervisor of a box that has joined no hub and has no model: memory at rest, time to start, time to say its
version. Real processes on a state folder of their own; times are medians. Writes build/bench/supervisor.json.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "landreeve_agent")
STARTS, VERSIONS = 3, 7
REST_S = 8.0
PATIENCE_S = 60.0
RSS_BAR_MB, VERSION_BAR_MS = 64.0, 200.0


@dataclass(frozen=True)
class Measured:
    """One start: seconds until the status was answered and, after a rest, memory in MB (10^6 bytes) and CPU."""

    start_s: float
    start_cpu_s: float
    rss_mb: float
    unique_mb: float
    rest_cpu_percent: float


def version_ms() -> float:
    """Wall time of ``landreeve --version``."""
    began = time.perf_counter()
    subprocess.run([*PROGRAM, "--version"], check=True, capture_output=True)
    return (time.perf_counter() - began) * 1000


def make_site(state: Path) -> None:
    command = [
        *PROGRAM,
        "--state",
        str(state),
        "init",
        "--site",
        "bench",
        "--set=console.port=0",
        "--set=serving.port=0",
    ]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def supervisor(state: Path) -> Iterator[psutil.Process]:
    """The running process; ended as a service manager would."""
    with (state / "bench.log").open("ab") as log:
        child = subprocess.Popen([*PROGRAM, "--state", str(state), "run"], stdout=log, stderr=log)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(PATIENCE_S)


def one_start(state: Path) -> Measured:
    began = time.perf_counter()
    with supervisor(state) as process:
        wait_for(lambda: answers(state))
        start_s, start_cpu_s = time.perf_counter() - began, cpu_s(process)
        time.sleep(2.0)  # the probe of the hardware ends
        before = cpu_s(process)
        time.sleep(REST_S)
        memory = process.memory_full_info()
        rest = (cpu_s(process) - before) / REST_S * 100
        return Measured(start_s, start_cpu_s, memory.rss / 1e6, memory.uss / 1e6, rest)


def answers(state: Path) -> bool:
    """Whether the API gives the status."""
    try:
        ports = json.loads((state / "run" / "ports.json").read_text())
        request = urllib.request.Request(f"http://127.0.0.1:{ports['console']}/api/v1/status")
        request.add_header("Authorization", f"Bearer {(state / 'tokens' / 'api').read_text().strip()}")
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        if time.monotonic() > deadline:
            raise SystemExit("the supervisor did not answer within a minute; run `landreeve run` by hand to see why")
        time.sleep(0.02)


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of the process itself."""
    times = process.cpu_times()
    return float(times.user + times.system)


def rows(starts: list[Measured], versions: list[float]) -> list[dict[str, object]]:
    """The figures as ``{what, value, unit, bar, holds}``."""
    rss, version = max(start.rss_mb for start in starts), statistics.median(versions)
    middle = lambda pick: statistics.median(pick(start) for start in starts)  # noqa: E731
    return [
        _row("idle RSS, not joined, no model", rss, "MB", RSS_BAR_MB),
        _row("idle memory of its own (USS)", middle(lambda start: start.unique_mb), "MB"),
        _row("idle CPU of one core", middle(lambda start: start.rest_cpu_percent), "%"),
        _row("start until the API answers", middle(lambda start: start.start_s), "s"),
        _row("CPU of the start", middle(lambda start: start.start_cpu_s), "s"),
        _row("landreeve --version", version, "ms", VERSION_BAR_MS),
    ]


def _row(what: str, value: float, unit: str, bar: float | None = None) -> dict[str, object]:
    shown, holds = (None, None) if bar is None else (f"≤ {bar:g}", value <= bar)
    return {"what": what, "value": round(value, 2), "unit": unit, "bar": shown, "holds": holds}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        state = Path(temporary) / "site"
        make_site(state)
        found = rows([one_start(state) for _ in range(STARTS)], [version_ms() for _ in range(VERSIONS)])
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for row in found:
        verdict = "" if row["bar"] is None else f"bar {row['bar']}: {'holds' if row['holds'] else 'missed'}"
        print(f"{row['what']:36}{row['value']:>10} {row['unit']:3} {verdict}")
    target = ROOT / "build/bench/supervisor.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
