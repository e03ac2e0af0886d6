"""A box that changes while it runs is shown as it is now."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from landreeve.wire.codec import encode
from landreeve.wire.messages import Event, Fact
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import Arrival, commit_batch
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import select

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    row = {"id": "d-1", "fleet": "f", "site": "d-1", "labels": {}, "hardware": {"kind": "GPU"}}
    opened.submit(lambda c: upsert(c, tables.devices, row)).result()
    yield opened
    opened.close()


def take(store: Store, name: str, data: dict[str, Any]) -> Any:
    event = Event(name=name, subject="pci:0000:01:00.0", cause="vanished", sentence="It is gone.", data=data)
    fact = Fact(epoch=7, seq=1, at="2026-05-01T11:59:59.000Z", body=event)
    arrival = Arrival("d-1", encode(fact))
    appliers = standard_appliers(audit=lambda _c, _d, _f: None)
    store.submit(lambda c: commit_batch(c, [arrival], [], appliers, NOW)).result()
    device = store.submit_read(lambda c: c.execute(select(tables.devices)).one()).result()
    return device.hardware, store.submit_read(lambda c: c.execute(select(tables.events)).one()).result()


def test_a_changed_inventory_replaces_the_one_of_birth_and_is_not_kept_twice(store: Store) -> None:
    inventory = {"kind": "CPU", "text": "a cpu", "cpu": {"numa": [{"number": 0, "cpus": "0-1"}]}}
    hardware, event = take(store, "hardware.changed", {"hardware": inventory, "models": ["demand"]})
    assert hardware == inventory
    assert (event.sentence, event.data) == ("It is gone.", {"models": ["demand"], "cause": "vanished"})


@pytest.mark.parametrize(("name", "told"), [("hardware.changed", "a gpu"), ("update.transition", {"kind": "NPU"})])
def test_nothing_else_replaces_it(name: str, told: Any, store: Store) -> None:
    hardware, _ = take(store, name, {"hardware": told})
    assert hardware == {"kind": "GPU"}
