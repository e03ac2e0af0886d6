"""A real hub with its broker, and real sites on which things go wrong while they update.

Each site is the product's own supervisor and worker as a service manager would keep them, asked for predictions
throughout. `early/sitecustomize.py` lets the test choose the moment at which something goes wrong.
"""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from landreeve.release.layout import Packed
from landreeve_agent.config import StateFolder
from landreeve_agent.link.enrol import join
from landreeve_agent.link.identity import load_identity, save_identity
from landreeve_hub.exchange.archive import write_archive

from tests.faults.prober import Prober
from tests.faults.releases import MODEL, release
from tests.faults.table import Row
from tests.integration.hub_site import HubProcess

EARLY = Path(__file__).resolve().with_name("early")
ROWS, ROWS_OF_WORSE = 20, 150
LONG_S = 120.0
ENDED = frozenset({"FINISHED", "ROLLED_BACK", "ABORTED", "PAUSED"})
# Fast where the product waits, so that a suite of many updates ends; nothing of what is tested depends on it.
HUB_SETTINGS = ("pace.rollout_s=0.3",)
SITE_SETTINGS = (
    "console.port=0", "serving.port=0", "link.reconnect_jitter_s=0.3", "update.judge_every_s=0.3",
    "tuning.budget_s=0.2", "hardware.prove_after_s=3600", "telemetry.interval_s=5",
)  # fmt: skip
_sites = itertools.count(1)


class TroubleError(AssertionError):
    """Something did not come to be; the text says what, and what the site said."""


class Yard:
    """The hub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = HubProcess(folder / "hub", *HUB_SETTINGS)
        self.process.start()

    @property
    def state(self) -> Path:
        return self.process.folder

    @property
    def ports(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "run" / "ports.json").read_text())
        return found

    def push(self, packed: Packed) -> str:
        """The version of an approved release."""
        return self.take(write_archive(packed))

    def take(self, archive: bytes) -> str:
        """The version of the release in that archive, approved."""
        headers = {**self._signed_in(), "Content-Type": "application/x-tar"}
        url = f"{self.ports['url']}/api/v1/releases"
        answer = httpx2.post(url, content=archive, headers=headers, timeout=60)
        assert answer.status_code < 400, answer.text
        pushed = answer.json()
        self.process.post(f"releases/{pushed['digest']}/approve", {"emergency": "one person only"})
        return str(pushed["version"])

    def shelves(self, part: str) -> bool:
        """Whether an OCI client that asks for a part of the model's repository hears that it is there."""
        url = f"{self.ports['url']}/v2/{MODEL}/{part}"
        return httpx2.head(url, headers=self._signed_in(), timeout=60).status_code == 200

    def _signed_in(self) -> dict[str, str]:
        token = (self.state / "run" / "admin-token").read_text().strip()
        return {"Authorization": f"Bearer {token}"}

    def order(
        self, version: str, *sites: "Site", rows: int = ROWS, model: str = MODEL, force: str = "", **plan: Any
    ) -> str:
        """A rollout to these sites alone, begun; its number. ``probation`` in the plan adds to what is needed here;
        ``force`` is the reason to take a release that is in quarantine."""
        probation = {"min_rows": rows, "min_labelled": 0, "max_rows": 20 * rows, "max_s": 90.0}
        whole = {
            "waves": [{"devices": [site.name for site in sites]}],
            "ping_pong": {"max_returns": 1000},
            **plan,
            "probation": {**probation, **plan.get("probation", {})},
        }
        asked = {"model": model, "version": version, "plan": whole, "force": force}
        started = self.process.post("rollouts", asked)
        self.process.post(f"rollouts/{started['id']}/approve", {"emergency": "one person only"})
        return str(started["id"])

    def rollout(self, number: str) -> dict[str, Any]:
        found: dict[str, Any] = self.process.get(f"rollouts/{number}")
        return found

    def ended(self, number: str, seconds: float = LONG_S) -> str:
        """How the rollout ended."""

        def look() -> str:
            state = str(self.rollout(number)["state"])
            return state if state in ENDED else ""

        return until(f"the end of rollout {number}", look, seconds, lambda: json.dumps(self.rollout(number))[:3000])

    def retried(self, number: str) -> str:
        """How the rollout ends that stands, tried again where it failed."""
        self.process.post(f"rollouts/{number}/retry", {})
        self.process.post(f"rollouts/{number}/resume", {})
        return self.ended(number)

    def abort_all(self) -> None:
        """Leave no rollout behind that would stand in the way of the next."""
        end = time.monotonic() + 30.0
        while time.monotonic() < end:
            rows = self.process.get("rollouts")
            busy = [row["id"] for row in rows if row["state"] not in ENDED or row["state"] == "PAUSED"]
            if not busy:
                return
            for number in busy:
                self.process.call("POST", f"rollouts/{number}/abort", {})
            time.sleep(1.0)

    def close(self) -> None:
        self.process.stop()


class Site:
    """One site, kept up. `arm` makes something go wrong at a point of the next update."""

    def __init__(
        self, yard: Yard, folder: Path, *settings: str, state: Path | None = None, launched: bool = False
    ) -> None:
        """With ``launched`` a launcher keeps the agent, and is itself kept."""
        self.yard = yard
        self.name = f"site-{next(_sites)}"
        self.folder = folder / self.name
        self.faults = self.folder / "faults"
        self.faults.mkdir(parents=True)
        self.state = state or self.folder / "state"
        self.log = self.folder / "log.txt"
        self.deaths = 0
        self.version = ""
        self.prober = Prober(self.state, MODEL)
        self._settings = (*SITE_SETTINGS, *settings)
        self._launched = launched
        self._wanted = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None

    def open(self, broker_port: int = 0) -> "Site":
        """Join, start, and take a first version, which serves on return. ``broker_port`` is a line's."""
        StateFolder(self.state).prepare()
        token = self.yard.process.token(self.name)
        self.device = join(self.state, token, datetime.now(UTC)).device
        identity = load_identity(self.state)
        assert identity is not None
        if broker_port:
            save_identity(self.state, msgspec.structs.replace(identity, broker_port=broker_port))
        self.start()
        self.until("the site's link", self._online)
        self.version = self.yard.push(release(self.folder))
        self.prober.start()
        ended = self.yard.ended(self.yard.order(self.version, self))
        assert ended == "FINISHED", self.said()
        return self

    def _online(self) -> bool:
        rows = self.yard.process.get("devices")
        found = rows["items"] if isinstance(rows, dict) else rows
        return any(row["id"] == self.device and row["online"] for row in found)

    # --- processes

    def start(self) -> None:
        """Keep the supervisor up, as a service manager does."""
        self._wanted.set()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        flags = [part for setting in self._settings for part in ("--set", setting)]
        module = "landreeve_agent.launch.launcher" if self._launched else "landreeve_agent"
        run = [] if self._launched else ["run"]
        command = [sys.executable, "-m", module, "--state", str(self.state), *run, *flags]
        environment = {**os.environ, "PYTHONPATH": str(EARLY), "FAULTS": str(self.faults), "PYTHONFAULTHANDLER": "1"}
        while self._wanted.is_set():
            with self.log.open("ab") as out:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment
                )
            code = self._child.wait()
            self.deaths += code == -signal.SIGKILL
            if self._wanted.is_set():
                time.sleep(0.3 if code < 0 else 1.0)

    def stop(self) -> None:
        """End the supervisor, in order."""
        self._wanted.clear()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(25)
            except subprocess.TimeoutExpired:
                self._child.kill()
        if self._keeper is not None:
            self._keeper.join()

    def close(self) -> None:
        self.prober.stop()
        self.stop()

    # --- what is to go wrong

    def arm(self, point: str, action: str = "halt") -> None:
        (self.faults / "reached").unlink(missing_ok=True)
        beside = self.faults / "point.new"
        beside.write_text(f"{point} {action}")
        beside.rename(self.faults / "point")

    def reached(self, seconds: float = LONG_S) -> None:
        """Wait until the point has come."""
        self.until(f"the point {self._armed()}", (self.faults / "reached").exists, seconds)

    def _armed(self) -> str:
        with contextlib.suppress(OSError):
            return (self.faults / "point").read_text()
        return "that was armed"

    def go_on(self) -> None:
        (self.faults / "reached").unlink(missing_ok=True)

    @contextlib.contextmanager
    def at(self, point: str, action: str = "halt") -> Iterator[None]:
        """The body runs while the agent waits at the point."""
        self.arm(point, action)
        self.reached()
        yield
        self.go_on()

    def disarm(self) -> None:
        for name in ("point", "reached", "models.json"):
            (self.faults / name).unlink(missing_ok=True)

    def behave(self, version: str, how: str) -> None:
        """How that version is once it serves."""
        (self.faults / "models.json").write_text(json.dumps({version: how}))

    # --- what is seen

    def until(self, what: str, ask: Callable[[], Any], seconds: float = LONG_S) -> Any:
        return until(f"{self.name}: {what}", ask, seconds, self.said)

    def said(self) -> str:
        log = self.log.read_text(errors="replace")[-5000:] if self.log.exists() else ""
        return f"{log}\nlast transitions: {self.transitions()[-12:]}\nprober: {self.prober}"

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the agent's store, as they are now; none while it cannot be read."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state / 'agent.db'}?mode=ro", uri=True, timeout=5)) as db:
            return db.execute(query, values).fetchall()

    def transitions(self) -> list[tuple[str, str]]:
        """State and cause of every transition."""
        with contextlib.suppress(sqlite3.Error):
            return [(str(s), str(c)) for s, c in self.rows("SELECT state, cause FROM transitions ORDER BY n")]
        return []

    def cause(self) -> str:
        """Why the last update ended as it did."""
        return self.transitions()[-1][1]

    def status(self) -> dict[str, Any]:
        """The site's own status, as its console shows it."""
        port = json.loads((self.state / "run" / "ports.json").read_text())["console"]
        token = (self.state / "tokens" / "api").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx2.get(f"http://127.0.0.1:{port}/api/v1/status", headers=headers, timeout=20)
        found: dict[str, Any] = answer.json()
        return found

    # --- the books

    def books(self, since: frozenset[str] = frozenset()) -> tuple[int, int]:
        """Facts lost and doubled, of all there were: numbered facts of the agent against the hub's, transitions against
        reports, and answered requests (but those of ``since``) against captured rows."""
        self.prober.stop()
        self.until("the spool to be taken in", self.taken_in)
        self.until("the outbox to be empty but for metrics", self._told)
        transitions = self.rows("SELECT count(*) FROM transitions")[0][0]
        ((epoch, last),) = self.rows(
            "SELECT (SELECT value FROM meta WHERE key = 'outbox.epoch'), seq FROM sqlite_sequence WHERE name = 'outbox'"
        )
        waiting = {seq for (seq,) in self.rows("SELECT seq FROM outbox")}
        samples = {name for (name,) in self.rows("SELECT id FROM samples")}
        ((counted, kept_rows),) = self.rows(
            "SELECT (SELECT sum(predictions) FROM counters), (SELECT count(*) FROM samples WHERE p IS NOT NULL)"
        )
        query = "SELECT seq, type FROM facts WHERE device = ? AND epoch = ?"
        facts = self.at_hub(query, self.device, int(epoch))
        kept = {seq for seq, _ in facts}
        told = sum(kind == "update" for _, kind in facts)
        answered = self.prober.answered.keys() - since
        lost = len(set(range(1, last + 1)) - waiting - kept) + max(0, transitions - told)
        lost += len(answered - samples)
        doubled = len(facts) - len(kept) + max(0, told - transitions) + max(0, counted - kept_rows)
        self.prober.start()
        return lost, doubled

    def at_hub(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the hub's store."""
        path = self.yard.state / "hub.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
            return db.execute(query, values).fetchall()

    def taken_in(self) -> bool:
        """Whether every captured row is in the store."""
        files = {path.name: path.stat().st_size for path in (self.state / "spool").glob("*.jsonl")}
        taken = dict(self.rows("SELECT file, offset FROM spool"))
        return all(taken.get(name, 0) >= size for name, size in files.items())

    def _told(self) -> bool:
        """Whether nothing but what goes on for ever is on its way, and the hub has all that has left."""
        return {kind for (kind,) in self.rows("SELECT kind FROM outbox")} <= {"metric"}

    # --- a row of the table

    def judged(self, fault: str, ended: str, expected: str, note: str = "", runs: int = 1) -> Row:
        """What became of it, with the books and the time without a correct answer since `mark`."""
        lost, doubled = self.books(self._before)
        return Row(fault, runs, lost, doubled, self.prober.not_serving_s - self._marked_s, ended, expected, note)

    def mark(self) -> None:
        """From now on it counts. Requests answered before do, too: they are kept for as long as the site lives."""
        self._marked_s = self.prober.not_serving_s
        self._before: frozenset[str] = frozenset()

    def forget_rows(self) -> str:
        """What was answered until now is not asked for: its rows are known to be gone, and the site says so. How many
        are, in words, as far as the store tells."""
        self._before = frozenset(self.prober.answered)
        gone = self._before - {name for (name,) in self.rows("SELECT id FROM samples")}
        return f"{len(gone)} rows not kept, and said so" if gone else ""


def until(what: str, ask: Callable[[], Any], seconds: float, said: Callable[[], str]) -> Any:
    """The first true answer."""
    end = time.monotonic() + seconds
    trouble: object = None
    while time.monotonic() < end:
        try:
            if found := ask():
                return found
        except (OSError, ValueError, KeyError, sqlite3.Error, httpx2.HTTPError) as error:
            trouble = error
        time.sleep(0.15)
    raise TroubleError(f"{what} did not come to be ({trouble}):\n{said()}")
