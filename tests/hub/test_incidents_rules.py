"""What becomes an incident, once."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from landreeve.wire.messages import DriftReport, Event, Fact, UpdateReport
from landreeve_hub.incidents import incidents
from landreeve_hub.incidents.incidents import Incidents, IncidentStateError, IncidentWatch, UnknownIncidentError
from landreeve_hub.incidents.rules import Raise, incident_of
from landreeve_hub.ingest.appliers import apply_event
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import insert

NOW = datetime(2026, 5, 1, tzinfo=UTC)
RAISED = Raise("k", "quality_lost", "warning", "quality_lost", "It is worse.")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


def drift(verdict: str) -> DriftReport:
    return DriftReport(
        model="delay", release="1" * 64, version="v1", window=7, first="", last="", rows=900, scores={},
        thresholds={}, drifted=(), sketches={}, verdict=verdict, sentence="Log loss rose by 0.03.",
    )  # fmt: skip


def update(state: str, cause: str) -> UpdateReport:
    return UpdateReport(
        model="delay", rollout="r-000002", generation=3, release="1" * 64, version="v2", state=state,
        previous="PROBATION", cause=cause, sentence="It did not go well.",
    )  # fmt: skip


def test_lost_quality_is_an_incident_and_drift_alone_is_none() -> None:
    raised = incident_of(drift("quality_lost"), "d-1", "EWR")
    assert raised is not None
    assert "Log loss rose by 0.03." in raised.sentence
    assert incident_of(drift("drifted"), "d-1", "EWR") is None


def test_failed_update_is_left_to_its_rollout_but_a_failed_return_is_not() -> None:
    assert incident_of(update("ROLLED_BACK", "worse"), "d-1", "EWR") is None
    assert incident_of(update("ROLLBACK_FAILED", "load_failed"), "d-1", "EWR").kind == "rollback_failed"


def test_artifact_that_arrives_damaged_is_one_incident_for_all_sites() -> None:
    raised = [incident_of(update("REJECTED", "corrupt_artifact"), device, device) for device in ("d-1", "d-2")]
    assert {one.key for one in raised} == {"artifact:" + "1" * 64}
    assert "pushing the same release again" in raised[0].sentence


def test_order_that_was_not_believed_is_an_incident() -> None:
    refused = Event(name="update.refused", subject="generation 4", cause="bad_signature", sentence="Not signed.")
    assert incident_of(refused, "d-1", "EWR").kind == "signature_rejected"


async def test_same_incident_is_opened_once_and_again_only_after_it_was_closed(store: Store) -> None:
    book = Incidents()
    first = await store.write(lambda c: book.open_in(c, NOW, RAISED))
    assert await store.write(lambda c: book.open_in(c, NOW, RAISED)) == first
    await store.write(lambda c: book.close_in(c, NOW, first, "ann"))
    assert await store.write(lambda c: book.open_in(c, NOW, RAISED)) == first
    shown = await store.read(lambda c: incidents.shown(c, first))
    assert shown["state"] == "open"
    assert [line["action"] for line in shown["log"]] == ["opened", "closed", "reopened"]


async def test_incident_is_acknowledged_once(store: Store) -> None:
    book = Incidents()
    name = await store.write(lambda c: book.open_in(c, NOW, RAISED))
    await store.write(lambda c: book.acknowledge_in(c, NOW, name, "ann"))
    with pytest.raises(IncidentStateError):
        await store.write(lambda c: book.acknowledge_in(c, NOW, name, "bob"))
    with pytest.raises(UnknownIncidentError):
        await store.write(lambda c: book.close_in(c, NOW, "i-99999", "bob"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "(last: SIGSEGV)."),
        ({"running": ["delay 2.0.0"]}, "(last: SIGSEGV, with delay 2.0.0 under way)."),
        ({"running": ["a 1", "b 1", "c 1", "d 1", "e 1"]}, "(last: SIGSEGV, with a 1, b 1, c 1, 2 more under way)."),
        ({"running": "delay"}, "(last: SIGSEGV)."),
        ({"running": [7, {"model": "delay"}]}, "(last: SIGSEGV)."),
    ],
)
async def test_worker_that_dies_again_and_again_is_one_incident(store: Store, data: dict[str, Any], said: str) -> None:
    watch = IncidentWatch(Incidents(), lambda: NOW)
    device = {"id": "d-1", "fleet": "demo", "site": "EWR"}
    await store.write(lambda c: c.execute(insert(tables.devices).values(device)) and None)
    for number in range(7):
        body = Event(name="worker.restarted", subject="worker", cause="SIGSEGV", sentence="It ended.", data=data)
        fact = Fact(epoch=1, seq=number + 1, at=f"2026-05-01T00:0{number}:00.000Z", body=body)

        def apply(connection, fact=fact):
            apply_event(connection, "d-1", fact)
            watch.apply(connection, "d-1", fact)

        await store.write(apply)
    (incident,) = await store.read(incidents.listed)
    assert incident["kind"] == "crash_loop"
    assert incident["sentence"].startswith(f"The inference server at EWR died 5 times within 10 minutes {said}")


async def test_incident_that_becomes_worse_says_so(store: Store) -> None:
    book = Incidents()
    worse = Raise("k", "certificate_expired", "error", "not_renewed", "It has ended.")
    name = await store.write(lambda c: book.open_in(c, NOW, RAISED))
    await store.write(lambda c: book.acknowledge_in(c, NOW, name, "ann"))
    await store.write(lambda c: book.open_in(c, NOW, worse))
    await store.write(lambda c: book.open_in(c, NOW, RAISED))
    (row,) = await store.read(incidents.listed)
    assert (row["state"], row["severity"], row["kind"]) == ("open", "error", "certificate_expired")
    assert row["sentence"] == "It has ended."
    shown = await store.read(lambda c: incidents.shown(c, name))
    assert [line["action"] for line in shown["log"]] == ["opened", "acknowledged", "worse"]
