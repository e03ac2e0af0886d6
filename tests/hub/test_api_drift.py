"""Drift over the fleet: what is read of the windows that the hub keeps, on both engines."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from landreeve_hub.api import drift_views
from landreeve_hub.console.drift import quality
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import insert

SITES = {"d-1": "EWR", "d-2": "JFK", "d-3": "LGA"}
SKETCH = {"kind": "histogram", "edges": [12.0], "counts": [3, 4], "missing": 0}


async def test_drift_reads_the_newest_window_of_each_device_and_sketches_of_one_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "hub.db")
    devices = [{"id": d, "fleet": "demo", "site": s} for d, s in SITES.items()]
    await store.write(lambda c: c.execute(insert(tables.devices), devices) and None)
    many, few = "1" * 64, "2" * 64

    def window(device: str, number: int, release: str, score: float, **quality: float) -> dict[str, Any]:
        report = {
            "type": "drift", "scores": {"hour": score}, "sketches": {"hour": SKETCH}, "verdict": "stable",
            "quality": quality, "last": f"2026-05-{number:02d}T00:00:00Z",
        }  # fmt: skip
        own = {"device": device, "model": "delay", "window": number, "release": release, "version": "v1"}
        return {**own, "last": report["last"], "report": report}

    rows = [
        window("d-1", 1, few, 0.9, log_loss=0.5, labelled=100, reference_log_loss=0.4),
        window("d-1", 10, many, 0.1, log_loss=0.2, labelled=300, reference_log_loss=0.4),
        window("d-2", 9, few, 0.9),
        window("d-2", 10, many, 0.2, log_loss=0.6, labelled=100),
        window("d-3", 2, few, 0.3, log_loss=0.3),
        {**window("d-3", 11, few, 0.9), "model": "other"},
    ]
    await store.write(lambda c: c.execute(insert(tables.windows), rows) and None)
    found = await store.read(lambda c: drift_views.drift(c, "delay"))
    d1, d2, d3 = SITES["d-1"], SITES["d-2"], SITES["d-3"]
    assert found["matrix"]["hour"] == {d1: 0.1, d2: 0.2, d3: 0.3}
    assert found["merged"]["release"] == many
    assert sorted(found["merged"]["sites"]) == sorted([d1, d2])
    assert found["merged"]["sketches"]["hour"]["counts"] == [6, 8]
    shown = [(w["site"], w["window"]) for w in found["windows"]]
    assert shown == [(d1, 1), (d3, 2), (d2, 9), (d1, 10), (d2, 10)]
    assert not any(w.keys() & {"sketches", "type"} for w in found["windows"])
    assert [tuple(day.values()) for day in found["quality"]] == [
        ("2026-05-01", pytest.approx(0.5), pytest.approx(0.4)),
        ("2026-05-02", pytest.approx(0.3), None),
        ("2026-05-10", pytest.approx(0.3), pytest.approx(0.4)),
    ]
    line = quality(found["quality"])  # as the page draws it
    assert line["measured"] == [0.5, 0.3, 0.3]
    assert line["expected"] == [0.4, None, 0.4]
    assert line["t"] == [datetime(2026, 5, day, tzinfo=UTC).timestamp() for day in (1, 2, 10)]
    monkeypatch.setattr(drift_views, "MOST_WINDOWS", 2)
    monkeypatch.setattr(drift_views, "HISTORY", 1)
    bounded = await store.read(lambda c: drift_views.drift(c, "delay"))
    assert [(w["site"], w["window"]) for w in bounded["windows"]] == [(d1, 10), (d2, 10)]
    assert [day["day"] for day in bounded["quality"]] == ["2026-05-02", "2026-05-10"]
    assert bounded["matrix"] == found["matrix"]
    store.close()
