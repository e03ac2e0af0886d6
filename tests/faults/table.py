"""The table of a fault suite: what went wrong, how often, what it cost, where it ended."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[2] / "build" / "bench" / "faults.json"


@dataclass
class Row:
    """One fault. ``ended`` is the end of the rollout and what the device says of it; ``expected`` what it must be."""

    fault: str
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    not_serving_s: float = 0.0
    ended: str = ""
    expected: str = ""
    note: str = ""
    reason: str = ""

    @property
    def holds(self) -> bool:
        return (self.lost, self.doubled, self.ended) == (0, 0, self.expected)


@dataclass
class Table:
    """Rows in the order in which they came."""

    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Another run of a fault that is there already adds to it; the worst end is kept."""
        known = self.rows.setdefault(row.fault, row)
        if known is row:
            return
        known.runs += row.runs
        known.lost += row.lost
        known.doubled += row.doubled
        known.not_serving_s += row.not_serving_s
        if not row.holds or known.reason:
            known.ended, known.expected, known.note, known.reason = row.ended, row.expected, row.note, row.reason

    def text(self) -> str:
        width = max([len(row.fault) for row in self.rows.values()] + [5])
        lines = [f"{'fault':{width}}{'runs':>6}{'lost':>6}{'doubled':>9}{'not serving s':>15}  ended in"]
        for row in self.rows.values():
            if row.reason:
                lines.append(f"{row.fault:{width}}{0:>6}{'-':>6}{'-':>9}{'-':>15}  skipped: {row.reason}")
                continue
            figures = f"{row.runs:>6}{row.lost:>6}{row.doubled:>9}{row.not_serving_s:>15.1f}"
            wrong = "" if row.holds else f"   NOT AS EXPECTED: {row.expected}"
            note = f" ({row.note})" if row.note else ""
            lines.append(f"{row.fault:{width}}{figures}  {row.ended}{note}{wrong}")
        return "\n".join(lines)

    def write(self, others: frozenset[str]) -> None:
        """Keep what an earlier run found of ``others``, faults that are still tested and were left out now."""
        kept: list[dict[str, Any]] = []
        if OUT.exists():
            kept = [entry for entry in json.loads(OUT.read_text()) if entry["what"].split(": ")[0] in others]
        made = [entry for row in self.rows.values() if not row.reason for entry in _entries(row)]
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps([*kept, *made], indent=1) + "\n", encoding="utf-8")


def _entries(row: Row) -> list[dict[str, Any]]:
    counts = [("facts lost", row.lost), ("facts doubled", row.doubled)]
    return [
        *(_entry(row, what, value, "facts", "= 0", holds=value == 0) for what, value in counts),
        _entry(row, "not serving", round(row.not_serving_s, 1), "s", None, holds=True),
        _entry(row, f"ended in, of {row.runs} runs", row.ended, "state", row.expected, holds=row.ended == row.expected),
    ]


def _entry(row: Row, what: str, value: Any, unit: str, bar: str | None, *, holds: bool) -> dict[str, Any]:
    return {"what": f"{row.fault}: {what}", "value": value, "unit": unit, "bar": bar, "holds": holds}
