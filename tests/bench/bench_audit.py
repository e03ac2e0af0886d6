"""What the audit log costs as it grows: appending, sealing, proving, and the offline verifier.

    .venv/bin/python tests/bench/bench_audit.py

CPU time of this process; the log is in memory, so that fsync does not hide what is measured. Prints a table and writes
build/bench/audit.json.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from landreeve.audit import export, keys, ledger, merkle
from landreeve.audit.entry import Act
from landreeve.audit.sealing import Sealer
from landreeve.audit.verify import Known, verify
from landreeve_agent.audit.shelf import SiteShelf
from landreeve_agent.store.migrations import migrations
from sqlite_utils import Database as Tables

SIZES = (1_000, 30_000)
STEP = 200
AT = "2026-11-23T06:00:00Z"
ACT = Act("ann", "rollout.pause", "r-1", data={"why": "late labels", "share": 0.25})


def cpu(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


class Log:
    """A log in memory that is grown from size to size."""

    def __init__(self, root: Path) -> None:
        tables = Tables(memory=True)
        migrations.apply(tables)
        self.root, self.shelf = root, SiteShelf(tables)
        self.keys = keys.load(root / "keys", "log")
        self.sealer = Sealer(self.keys, root / "keys" / "audit.checkpoint")

    def grow(self, count: int, *, personal: bool = False) -> None:
        act = Act(ACT.actor, ACT.action, ACT.object, data=ACT.data, personal={"actor": "ann"}) if personal else ACT
        for _ in range(count):
            ledger.append(self.shelf, AT, act, os.urandom)

    def seal(self) -> None:
        assert isinstance(self.sealer.seal(self.shelf, None, AT), str)

    def measured(self, size: int) -> dict[str, float]:
        """CPU seconds of each step at that size."""
        self.grow(size - self.shelf.last()[0])
        self.seal()
        found = {"append, µs": cpu(lambda: self.grow(STEP)) / STEP * 1e6}
        found["append with a sealed name, µs"] = cpu(lambda: self.grow(STEP, personal=True)) / STEP * 1e6
        found["seal 400 new entries, ms"] = cpu(self.seal) * 1e3
        now = self.shelf.last()[0]
        proofs = range(1, now, max(1, now // 50))
        prove = cpu(lambda: [merkle.consistency_proof(self.shelf, old, now) for old in proofs])
        found["prove consistency, µs"] = prove / len(proofs) * 1e6
        found["proof, hashes"] = max(len(merkle.consistency_proof(self.shelf, old, now)) for old in proofs)
        return found

    def offline(self) -> tuple[float, float]:
        """Entries a second of the offline verifier, and bytes an entry of the export."""
        folder = self.root / "export"
        export.write(self.shelf, self.keys.key, AT, export.Folder(folder))
        seconds = cpu(lambda: verify(folder, Known(self.keys.key)))
        size = self.shelf.last()[0]
        return size / seconds, (folder / "entries.jsonl").stat().st_size / size


def main() -> None:
    """Measure, print, write down."""
    with tempfile.TemporaryDirectory(prefix="landreeve-audit-") as folder:
        log = Log(Path(folder))
        small, large = (log.measured(size) for size in SIZES)
        speed, size = log.offline()
    rows = []
    print(f"{'what':32} {SIZES[0]:>10,} {SIZES[1]:>10,} {'ratio':>7}")
    for what, value in small.items():
        ratio = large[what] / value
        print(f"{what:32} {value:10.1f} {large[what]:10.1f} {ratio:7.2f}")
        bar = 3.0  # thirty times the entries: a step that reads them all would cost about thirty times as much
        rows.append({"what": f"{what}: {SIZES[1]:,} by {SIZES[0]:,} entries", "value": round(ratio, 2), "unit": "x",
                     "bar": bar, "holds": ratio <= bar})  # fmt: skip
        rows.append({"what": f"{what}, at {SIZES[1]:,}", "value": round(large[what], 1), "unit": what.split(", ")[-1],
                     "bar": None, "holds": None})  # fmt: skip
    print(f"offline verifier: {speed:,.0f} entries per CPU second; export: {size:.0f} bytes an entry before zip")
    rows.append({"what": "offline verifier", "value": round(speed), "unit": "entries/CPU s", "bar": 5000,
                 "holds": speed >= 5000})  # fmt: skip
    target = Path(__file__).parents[2] / "build" / "bench" / "audit.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
