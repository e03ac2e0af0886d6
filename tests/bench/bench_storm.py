"""A thousand devices lose the broker at one moment and come back: with no jitter, and with the product's default.

A real hub (``landreeve-hub serve``) with its own broker; clients with mutual TLS of their own certificates, some
hundred to a process; the broker is killed, the hub brings it back, and each client comes back by the product's rule
(`landreeve_agent.link.pause.pause_s`) with three facts that the hub has to acknowledge. ``bench_storm.py COUNT``
takes fewer clients. Writes build/bench/storm.json.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from socket import socket
from typing import Any

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_agent.link.session import Options  # noqa: E402 - needs the path above
from landreeve_hub.fleet.authority import Authority  # noqa: E402
from landreeve_hub.store import tables  # noqa: E402
from landreeve_hub.store.database import Store  # noqa: E402
from sqlalchemy import func, insert, select  # noqa: E402

CLIENTS, PROCESSES = int(sys.argv[1]) if sys.argv[1:] else 1000, 4
FLEET = "storm"
DEFAULT_S = Options().reconnect_jitter_s
PATIENCE_S = {0.0: 90.0, DEFAULT_S: DEFAULT_S + 30}


@dataclass
class Storm:
    """One round: how the clients came back, and what it cost."""

    jitter_s: float
    connected: list[float]
    done: list[float]
    tries: int
    behind: int
    hub_cpu_s: float
    broker_cpu_s: float
    hub_mb: float
    broker_mb: float

    def rows(self) -> list[dict[str, Any]]:
        label = f"jitter {self.jitter_s:.0f} s"
        back, done = sorted(self.connected) or [0.0], sorted(self.done) or [0.0]
        whole = len(self.done) == CLIENTS and self.behind == 0
        figures: list[tuple[str, float, str]] = [
            ("connected again, median", statistics.median(back), "s"),
            ("all connected again", back[-1], "s"),
            ("all facts acknowledged", done[-1], "s"),
            ("tries for each client", self.tries / CLIENTS, "tries"),
            ("hub CPU", self.hub_cpu_s, "s"),
            ("broker CPU", self.broker_cpu_s, "s"),
            ("hub peak RSS", self.hub_mb, "MB"),
            ("broker peak RSS", self.broker_mb, "MB"),
        ]
        rows = [row(f"{label}: {what}", round(value, 2), unit) for what, value, unit in figures]
        return [*rows, row(f"{label}: came back with all facts in", len(self.done), "clients", CLIENTS, holds=whole)]


def row(what: str, value: float, unit: str, bar: float | None = None, *, holds: bool = True) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "bar": bar, "holds": holds}


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Fleet:
    """The hub and the clients' processes."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "hub"
        self.port = free_port()
        self._keys = folder / "devices"
        self._log = (folder / "hub.log").open("wb")
        self._workers: list[subprocess.Popen[str]] = []
        self._init()
        self._serve()
        self._start_clients()

    def _init(self) -> None:
        """A hub that knows a thousand devices, each with a certificate of its authority."""
        hub = [sys.executable, "-m", "landreeve_hub", "init", "--state", str(self.state), "--set", f"fleet={FLEET}"]
        subprocess.run(hub, check=True, stdout=subprocess.DEVNULL)
        store = Store(str(self.state / "hub.db"))
        rows = [{"id": name, "fleet": FLEET, "site": name} for name in names()]
        store.submit(lambda c: c.execute(insert(tables.devices), rows).rowcount).result()
        store.close()
        authority, now = Authority(self.state), datetime.now(UTC)
        self._keys.mkdir()
        (self._keys / "ca.crt").write_text(authority.ca_pem)
        for name in names():
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
            request = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
            pem = request.public_bytes(Encoding.PEM).decode()
            (self._keys / f"{name}.key").write_bytes(
                key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            )
            (self._keys / f"{name}.crt").write_text(authority.sign_device(pem, name, now))

    def _serve(self) -> None:
        settings = {"http.port": 0, "https.port": 0, "broker.port": self.port}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "landreeve_hub", "serve", "--state", str(self.state), *words]
        self._hub = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        ports = self.state / "run" / "ports.json"
        until(lambda: ports.exists() and json.loads(ports.read_text()).get("pid") == self._hub.pid, 60)
        self.hub = psutil.Process(self._hub.pid)

    def _start_clients(self) -> None:
        share = CLIENTS // PROCESSES
        script = str(Path(__file__).with_name("storm_clients.py"))
        for number in range(PROCESSES):
            words = [str(self._keys), str(number * share), str(share), str(self.port)]
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, script, *words],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )
        until(lambda: sum(answer["connected"] for answer in self.ask("how")) == CLIENTS, 90)
        # A hub at rest: every device has its signed document.
        store = Store(str(self.state / "hub.db"))
        signed = select(func.count()).select_from(tables.desired)
        until(lambda: store.submit_read(lambda c: c.execute(signed).scalar()).result() == CLIENTS, 120)
        store.close()

    def broker(self) -> psutil.Process:
        found = [child for child in self.hub.children() if child.name() in {"mosquitto", "nats-server"}]
        return found[0]

    def ask(self, words: str) -> list[dict[str, Any]]:
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(words + "\n")
        return [json.loads(worker.stdout.readline()) for worker in self._workers if worker.stdout is not None]

    def storm(self, jitter_s: float) -> Storm:
        self.ask(f"round {jitter_s}")
        _forget_peak(self.hub)
        before = cpu_s(self.hub)
        os.kill(self.broker().pid, signal.SIGKILL)
        answers = self.ask(f"wait {PATIENCE_S[jitter_s]}")
        broker = self.broker()
        return Storm(
            jitter_s,
            [t for answer in answers for t in answer["connected"]],
            [t for answer in answers for t in answer["done"]],
            sum(answer["tries"] for answer in answers),
            sum(answer["behind"] for answer in answers),
            cpu_s(self.hub) - before,
            cpu_s(broker),
            _peak_mb(self.hub),
            _peak_mb(broker),
        )

    def counted(self) -> tuple[int, int]:
        """Facts at the hub, and events they made: equal when nothing counted twice."""
        store = Store(str(self.state / "hub.db"))
        facts = store.submit_read(lambda c: c.execute(select(func.count()).select_from(tables.facts)).scalar())
        storm = select(func.count()).select_from(tables.events).where(tables.events.c.name == "storm.fact")
        events = store.submit_read(lambda c: c.execute(storm).scalar())
        found = int(facts.result() or 0), int(events.result() or 0)
        store.close()
        return found

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
            worker.wait()
        self._hub.terminate()
        try:
            self._hub.wait(30)
        except subprocess.TimeoutExpired:
            self._hub.kill()
            self._hub.wait()
        self._log.close()


def names() -> list[str]:
    return [f"d-{number:04}" for number in range(CLIENTS)]


def until(condition: Any, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {patience_s} s")
        time.sleep(0.2)


def cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def _forget_peak(process: psutil.Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # VmHWM begins anew (proc(5))


def _peak_mb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="landreeve-storm-") as folder:
        fleet = Fleet(Path(folder))
        try:
            print(
                f"{CLIENTS} clients in after {time.monotonic() - began:.0f} s, broker {fleet.broker().name()}",
                flush=True,
            )
            rows = [one for jitter_s in PATIENCE_S for one in fleet.storm(jitter_s).rows()]
            facts, events = fleet.counted()
        finally:
            fleet.close()
    wanted = CLIENTS * 3 * len(PATIENCE_S)
    rows.append(row("facts at the hub", facts, "facts", wanted, holds=facts == wanted))
    rows.append(row("of them counted twice", events - facts, "facts", 0, holds=events == facts))
    for one in rows:
        held = "" if one["bar"] is None else f"  (bar {one['bar']:g}: {'held' if one['holds'] else 'MISSED'})"
        print(f"{one['what']:<48} {one['value']:>10,} {one['unit']}{held}")
    print(f"the whole run took {time.monotonic() - began:.0f} s")
    out = ROOT / "build" / "bench" / "storm.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["holds"] for one in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
