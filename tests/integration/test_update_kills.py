"""SIGKILL at every journal write and every effect of a real update: what is lost, doubled, not serving, how it ends.

One real hub with its broker, one real site with a worker that is asked ten times a second throughout. For each point a
new version is rolled out, the supervisor dies there, is started again as a service manager would, and the update must
still come to COMMITTED (or, for a version that is worse, back to the last good one) with every fact once at the hub.
Prints a table and writes build/bench/update_kills.json.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from landreeve.release.layout import pack, write_folder
from landreeve.release.manifest import Gates, Lineage, ReleaseConfig
from landreeve_models.definition import load_definition

from tests.agent.onnx_models import body, write_release
from tests.integration.test_agent_update import Fleet

MODEL = "delay"
PHASES = ("RECEIVED", "VERIFIED", "DOWNLOADING", "STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "COMMITTED")
POINTS = (
    *(f"{when}:{phase}" for phase in PHASES for when in ("before", "after")),
    *(f"{when}:{effect}" for effect in ("fetch", "prove", "activate", "look") for when in ("begin", "end")),
)
BACK = ("before:ROLLING_BACK", "after:ROLLING_BACK", "begin:direct", "before:ROLLED_BACK", "after:ROLLED_BACK")
ROWS = 20
ENOUGH_TO_SEE = 300  # before so many rows, answers that lie elsewhere are not surely elsewhere


@dataclass
class Prober:
    """An application that asks for one prediction after another, and notes when it got none."""

    site: Path
    failed_s: float = 0.0
    answered: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._done.wait(0.04):
            began = time.monotonic()
            try:
                port = json.loads((self.site / "run" / "ports.json").read_text())["serving"]
                self._ask(port)
                self.answered += 1
            except (OSError, ValueError, KeyError, urllib.error.URLError):
                self.failed_s += time.monotonic() - began + 0.04

    def _ask(self, port: int) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/models/{MODEL}/infer",
            json.dumps(body(id=f"p-{time.monotonic_ns()}")).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            answer.read()

    def __enter__(self) -> "Prober":
        self._thread = threading.Thread(target=self.run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


class Site(Fleet):
    """The fleet of one box, whose supervisor is started again whenever it dies."""

    point = "never"
    deaths = 0

    def keep(self) -> None:
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._stop.is_set():
            command = [str(Path(__file__).with_name("dying_agent.py")), self.point, str(self.mark)]
            flags = ["--set", "console.port=0", "--set", "serving.port=0"]
            with self.log.open("ab") as out:
                environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
                child = subprocess.Popen(
                    [sys.executable, *command, "--state", str(self.site), "run", *flags],
                    stdout=out,
                    stderr=out,
                    env=environ,
                )
            while child.poll() is None and not self._stop.is_set():
                time.sleep(0.05)
            if child.poll() is None:
                child.terminate()
                child.wait(20)
            self.deaths += child.returncode == -9

    def close(self) -> None:
        if hasattr(self, "_stop"):
            self._stop.set()
            self._keeper.join()
        super().close()

    @property
    def mark(self) -> Path:
        return self.hub_state.parent / "dead"

    def restart_with(self, point: str) -> None:
        """The next death is at that point; the agent is started anew to know it."""
        self.mark.unlink(missing_ok=True)
        self.point = point
        pid = int((self.site / "run" / "lock").read_text().strip())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 15)
        self.until("the agent to be back", lambda: self._is_another(pid))

    def _is_another(self, pid: int) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return (
                int((self.site / "run" / "lock").read_text().strip()) != pid
                and (self.site / "run" / "ports.json").exists()
            )
        return False

    def push(self, folder: Path) -> str:
        pushed = self.hub("model", "push", str(folder))
        self.hub("model", "approve", pushed["digest"], "--emergency", "one person only")
        return str(pushed["version"])

    def roll(self, version: str, rows: int = ROWS) -> dict[str, Any]:
        probation = {"min_rows": rows, "min_labelled": 0, "max_rows": 4 * rows, "max_s": 120.0}
        # So many bad releases one after another would rightly be left to a person.
        plan = json.dumps({"probation": probation, "ping_pong": {"max_returns": 1000}})
        started = self.hub("rollout", "start", f"{MODEL}@{version}", "--plan", plan)
        self.hub("rollout", "approve", started["id"], "--emergency", "one person only")
        return self.until(
            f"the end of {version}",
            lambda: (r := self.rollout(started["id"]))["state"] not in {"RUNNING", "ROLLING_BACK"} and r,
            150,
        )

    def books(self) -> tuple[int, int]:
        """Facts lost and doubled: what the site made and let go, against what the hub holds."""
        self.until("the outbox to be empty", lambda: self._outbox() == 0)
        with contextlib.closing(sqlite3.connect(f"file:{self.site / 'agent.db'}?mode=ro", uri=True)) as db:
            made = int(db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()[0])
            transitions = db.execute("SELECT count(*) FROM transitions").fetchone()[0]
        with contextlib.closing(sqlite3.connect(f"file:{self.hub_state / 'hub.db'}?mode=ro", uri=True)) as db:
            kept = db.execute("SELECT count(*), count(DISTINCT seq) FROM facts").fetchone()
            told = db.execute("SELECT count(*) FROM facts WHERE type = 'update'").fetchone()[0]
        return (made - kept[1]) + max(0, transitions - told), (kept[0] - kept[1]) + max(0, told - transitions)

    def _outbox(self) -> int:
        with contextlib.closing(sqlite3.connect(f"file:{self.site / 'agent.db'}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])


def release(folder: Path, run: str, bias: float) -> Path:
    """A release folder of a tiny graph whose answers depend on its bias."""
    made = write_release(folder / f"files-{run}", bias)
    definition = load_definition(made)
    config = ReleaseConfig(
        model=MODEL,
        family="mlp",
        created="2026-11-28T00:00:00Z",
        signature=definition.signature(),
        gates=Gates(),
        lineage=Lineage(run=run),
    )
    files = {
        path.name: path.read_bytes() for path in made.iterdir() if path.suffix in {".onnx", ".json", ".safetensors"}
    }
    files.pop("config.json", None)
    files.pop("manifest.json", None)
    target = folder / f"release-{run}"
    write_folder(pack(files, config), target)
    return target


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_update_survives_sigkill_at_every_journal_write_and_effect(site: Site, tmp_path: Path) -> None:
    site.open(keep=site.keep)
    site.roll(site.push(release(tmp_path, "first", 0.0)))
    rows: list[dict[str, Any]] = []
    with Prober(site.site) as prober:
        for number, point in enumerate(chosen()):
            worse = point in BACK
            version = site.push(release(tmp_path, f"n{number}", 50.0 if worse else 0.01 * (number + 1)))
            site.restart_with(point)
            deaths, down = site.deaths, prober.failed_s
            ended = site.roll(version, ENOUGH_TO_SEE if worse else ROWS)["state"]
            lost, doubled = site.books()
            row = {
                "fault": point, "deaths": site.deaths - deaths, "lost": lost, "doubled": doubled,
                "not_serving_s": round(prober.failed_s - down, 1), "ended": ended,
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    report(rows)
    for row in rows:
        assert row["deaths"] == 1, f"nobody died at {row['fault']}: the point is not reached"
        assert (row["lost"], row["doubled"]) == (0, 0), row
        assert row["ended"] == ("ROLLED_BACK" if row["fault"] in BACK else "FINISHED"), row


def chosen() -> list[str]:
    """Every point, or those that the environment names."""
    wanted = os.environ.get("KILL_AT", "").split()
    return [point for point in (*POINTS, *BACK) if not wanted or point in wanted]


def report(rows: list[dict[str, Any]]) -> None:
    """The table, and the same as rows for programs."""
    print(f"\n{'killed at':24}{'deaths':>8}{'lost':>6}{'doubled':>9}{'not serving s':>15}  ended")
    found = []
    for row in rows:
        figures = f"{row['deaths']:8}{row['lost']:6}{row['doubled']:9}{row['not_serving_s']:15}"
        print(f"{row['fault']:24}{figures}  {row['ended']}")
        for what in ("lost", "doubled"):
            value = row[what]
            found.append(
                {
                    "what": f"{row['fault']}: facts {what}",
                    "value": value,
                    "unit": "facts",
                    "bar": "= 0",
                    "holds": value == 0,
                }
            )
    target = Path(__file__).resolve().parents[2] / "build/bench/update_kills.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n")
