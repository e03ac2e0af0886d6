"""What a batch of messages does to the tables, in one transaction."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.wire.codec import encode
from landreeve.wire.messages import (
    Ack,
    AnyBody,
    Birth,
    Candidate,
    DeviceState,
    DriftReport,
    Event,
    Fact,
    Gap,
    LogLines,
    Metrics,
    UpdateReport,
)
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import KEEP_REJECTIONS, Arrival, Outcome, Refusal, commit_batch
from landreeve_hub.ingest.minutes import read_rows
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import Connection, Table, func, insert, select

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
EPOCH = 7
Take = Callable[..., Outcome]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    for device in ("d-1", "d-2"):
        row = {"id": device, "fleet": "f", "site": device, "labels": {"area": "north"}}
        opened.submit(lambda c, row=row: upsert(c, tables.devices, row)).result()
    yield opened
    opened.close()


@pytest.fixture
def take(store: Store) -> Take:
    """Commits arrivals given as facts, states or bytes of one device."""
    appliers = standard_appliers(audit=lambda _c, _d, _f: None)

    def run(*messages: Fact | DeviceState | bytes, device: str = "d-1", retained: bool = False) -> Outcome:
        arrivals = [_arrival(device, message, retained) for message in messages]
        return store.submit(lambda c: commit_batch(c, arrivals, [], appliers, NOW)).result()

    return run


def _arrival(device: str, message: Fact | DeviceState | bytes, retained: bool) -> Arrival:
    payload = message if isinstance(message, bytes) else encode(message)
    return Arrival(device, payload, is_state=isinstance(message, DeviceState), retained=retained)


def _fact(seq: int, body: AnyBody | None = None, epoch: int = EPOCH, at: str = "2026-05-01T11:59:00Z") -> Fact:
    return Fact(epoch=epoch, seq=seq, at=at, body=body or _event(f"n{seq}"))


def _event(name: str, **changes: Any) -> Event:
    return msgspec.structs.replace(Event(name=name, subject="s", cause="c", sentence="It happened."), **changes)


def _all(store: Store, table: Table) -> list[Any]:
    return store.submit_read(lambda c: list(c.execute(select(table)))).result()


def _one(store: Store, table: Table) -> Any:
    (row,) = _all(store, table)
    return row


def test_a_fact_and_its_effect_are_there_once_however_often_it_comes(store: Store, take: Take) -> None:
    take(_fact(1), _fact(2), _fact(1))
    outcome = take(_fact(2), _fact(3))
    assert [row.name for row in _all(store, tables.events)] == ["n1", "n2", "n3"]
    assert outcome.acks == [("d-1", Ack(epoch=EPOCH, seq=3))]
    assert tuple(_one(store, tables.delivery)) == ("d-1", 3, 2, 0)


def test_facts_above_a_hole_count_but_are_not_acknowledged(store: Store, take: Take) -> None:
    assert take(_fact(2), _fact(3)).acks == [("d-1", Ack(epoch=EPOCH, seq=0))]
    assert len(_all(store, tables.events)) == 2
    assert take(_fact(1)).acks == [("d-1", Ack(epoch=EPOCH, seq=3))]
    assert len(_all(store, tables.events)) == 3


def test_a_repeat_is_acknowledged_again_since_the_first_may_be_lost(take: Take) -> None:
    take(_fact(1))
    assert take(_fact(1)).acks == [("d-1", Ack(epoch=EPOCH, seq=1))]


def test_a_new_outbox_begins_anew_and_the_old_one_keeps_counting(store: Store, take: Take) -> None:
    take(_fact(1), _fact(2))
    outcome = take(_fact(1, epoch=8), _fact(3))
    assert set(outcome.acks) == {("d-1", Ack(epoch=8, seq=1)), ("d-1", Ack(epoch=EPOCH, seq=3))}
    assert len(_all(store, tables.events)) == 4


def test_devices_do_not_count_for_each_other(store: Store, take: Take) -> None:
    take(_fact(1), device="d-1")
    assert take(_fact(1), device="d-2").acks == [("d-2", Ack(epoch=EPOCH, seq=1))]
    assert len(_all(store, tables.events)) == 2


def test_rubbish_is_kept_with_its_reason_and_changes_nothing_else(store: Store, take: Take) -> None:
    outcome = take(b"\x00rubbish", b'{"epoch":7,"seq":"one"}', _fact(1))
    assert outcome.acks == [("d-1", Ack(epoch=EPOCH, seq=1))]
    reasons = [(row.bytes, row.reason) for row in _all(store, tables.rejections)]
    assert reasons[0][0] == b"\x00rubbish"
    assert all(reason.startswith("Fact: ") for _, reason in reasons)


def test_a_type_this_hub_does_not_know_never_holds_up_what_follows(store: Store, take: Take) -> None:
    unknown = b'{"v":1,"epoch":7,"seq":1,"at":"2026-05-01T11:59:00Z","body":{"type":"hologram"}}'
    assert take(unknown, _fact(2)).acks == [("d-1", Ack(epoch=EPOCH, seq=2))]
    assert take(unknown).acks == [("d-1", Ack(epoch=EPOCH, seq=2))]
    assert "hologram" in _all(store, tables.rejections)[0].reason
    assert [row.type for row in _all(store, tables.facts)] == ["rejected", "event"]


def test_a_later_contract_version_is_left_to_a_later_hub(take: Take) -> None:
    assert take(b'{"v":2,"epoch":7,"seq":1,"at":"2026-05-01T11:59:00Z","body":{"type":"event"}}').acks == []


def test_a_fact_without_an_applier_counts_as_rejected_and_keeps_its_bytes(store: Store, take: Take) -> None:
    body = Candidate(model="m", run="r", manifest="a" * 64, manifest_bytes=1, metrics={}, reason="drift")
    outcome = take(_fact(1, body), _fact(2))
    assert outcome.acks == [("d-1", Ack(epoch=EPOCH, seq=2))]
    assert "candidate" in _one(store, tables.rejections).reason


def test_a_failing_applier_undoes_its_own_changes_alone(store: Store) -> None:
    def half(connection: Connection, device: str, _fact: Fact) -> None:
        connection.execute(insert(tables.log_lines).values(device=device, line="half"))
        raise ValueError("the other half is missing")

    appliers = {**standard_appliers(audit=half), LogLines: half}
    arrivals = [_arrival("d-1", fact, False) for fact in (_fact(1, LogLines(lines=("x",))), _fact(2))]
    outcome = store.submit(lambda c: commit_batch(c, arrivals, [], appliers, NOW)).result()
    assert outcome.acks == [("d-1", Ack(epoch=EPOCH, seq=2))]
    assert _all(store, tables.log_lines) == []
    assert "the other half is missing" in _one(store, tables.rejections).reason


def test_facts_around_one_that_fails_count_once_each(store: Store) -> None:
    def half(_connection: Connection, _device: str, _fact: Fact) -> None:
        raise ZeroDivisionError

    appliers = {**standard_appliers(audit=half), LogLines: half}
    facts = [_fact(1), _fact(2), _fact(3, LogLines(lines=("x",))), _fact(4)]
    arrivals = [_arrival(device, fact, False) for fact in facts for device in ("d-1", "d-2")]
    outcome = store.submit(lambda c: commit_batch(c, arrivals, [], appliers, NOW)).result()
    assert sorted(outcome.acks) == [(device, Ack(epoch=EPOCH, seq=4)) for device in ("d-1", "d-2")]
    assert sorted(row.device for row in _all(store, tables.events)) == ["d-1"] * 3 + ["d-2"] * 3
    assert sorted((row.device, row.seq, row.type) for row in _all(store, tables.facts)) == [
        (device, seq, "rejected" if seq == 3 else "event") for device in ("d-1", "d-2") for seq in (1, 2, 3, 4)
    ]
    assert [(row.device, row.facts, row.rejected) for row in _all(store, tables.delivery)] == [
        ("d-1", 3, 1),
        ("d-2", 3, 1),
    ]


def test_a_stranger_and_a_revoked_device_are_not_acknowledged(store: Store, take: Take) -> None:
    store.submit(lambda c: c.execute(tables.devices.update().values(revoked=True))).result()
    assert take(_fact(1)).acks == []
    assert take(_fact(1), device="d-9").acks == []
    assert _all(store, tables.events) == []
    assert {row.device for row in _all(store, tables.rejections)} == {"d-1", "d-9"}


def test_a_device_that_repeats_rubbish_does_not_fill_the_disk(store: Store) -> None:
    rubbish = [Refusal("d-1", "no fact", b"x") for _ in range(KEEP_REJECTIONS + 50)]
    store.submit(lambda c: commit_batch(c, [], rubbish, {}, NOW)).result()
    count = select(func.count()).select_from(tables.rejections)
    assert store.submit_read(lambda c: c.execute(count).scalar()).result() == KEEP_REJECTIONS
    assert _one(store, tables.delivery).rejected == KEEP_REJECTIONS + 50


def test_birth_fills_in_the_device_and_the_hubs_labels_win(store: Store, take: Take) -> None:
    birth = Birth(
        agent="0.1.0",
        site="EWR",
        started="2026-05-01T11:00:00Z",
        hardware={"cpu": "x"},
        metric_names=("cpu_percent",),
        metric_set=3,
        certificate_expires="2026-08-01T00:00:00Z",
        labels={"area": "south", "size": "small"},
    )
    take(_fact(1, birth))
    device = next(row for row in _all(store, tables.devices) if row.id == "d-1")
    assert (device.agent, device.hardware, device.last_seen) == ("0.1.0", {"cpu": "x"}, "2026-05-01T12:00:00.000Z")
    assert device.labels == {"area": "north", "size": "small"}
    assert _one(store, tables.metric_sets).names == ["cpu_percent"]


def _report(state: str, previous: str) -> UpdateReport:
    return UpdateReport(
        model="m",
        rollout="r-1",
        generation=4,
        release="a" * 64,
        version="v2",
        state=state,
        previous=previous,
        cause="c",
        sentence=f"Now {state}.",
    )


def test_a_late_report_never_takes_an_update_back(store: Store, take: Take) -> None:
    take(_fact(1, _report("VERIFIED", "RECEIVED")), _fact(3, _report("COMMITTED", "PROBATION")))
    take(_fact(2, _report("PROBATION", "ACTIVATING")))
    assert _one(store, tables.updates).state == "COMMITTED"
    assert [row.data["state"] for row in _all(store, tables.events)] == ["VERIFIED", "COMMITTED", "PROBATION"]


def test_metrics_of_one_minute_become_one_row_in_order(store: Store, take: Take) -> None:
    take(_fact(2, Metrics(metric_set=1, rows=((130.0, 2.0), (185.0, None)))))
    take(_fact(1, Metrics(metric_set=1, rows=((121.0, 1.0),))))
    assert sorted(row.minute for row in _all(store, tables.metrics)) == [2, 3]
    rows = store.submit_read(lambda c: read_rows(c, "d-1", 1, since_s=121)).result()
    assert rows == [(121.0, 1.0), (130.0, 2.0), (185.0, None)]


def test_a_gap_is_kept_and_moves_the_mark(store: Store, take: Take) -> None:
    take(_fact(1))
    assert take(_fact(5, Gap(first=2, last=5, count=4))).acks == [("d-1", Ack(epoch=EPOCH, seq=5))]
    assert _one(store, tables.gaps).count == 4


def test_a_gap_that_comes_as_a_repeat_still_moves_the_mark(take: Take) -> None:
    take(_fact(1), _fact(5, Metrics(metric_set=1, rows=((60.0, 1.0),))))
    gap = _fact(5, Gap(first=2, last=5, count=4))
    assert take(gap).acks == [("d-1", Ack(epoch=EPOCH, seq=5))]


def test_a_window_is_kept_whole(store: Store, take: Take) -> None:
    report = DriftReport(
        model="m",
        release="a" * 64,
        version="v1",
        window=12,
        first="2026-04-01T00:00:00Z",
        last="2026-04-08T00:00:00Z",
        rows=900,
        scores={"psi": 0.3},
        thresholds={"psi": 0.2},
        drifted=("wind",),
        sketches={"wind": {"n": 900}},
        verdict="drifted",
        sentence="Wind has changed.",
    )
    take(_fact(1, report))
    window = _one(store, tables.windows)
    assert (window.window, window.rows, window.report["sketches"]) == (12, 900, {"wind": {"n": 900}})


def test_the_answer_to_a_command_closes_it_for_its_own_device_only(store: Store, take: Take) -> None:
    store.submit(lambda c: c.execute(insert(tables.commands).values(id="c-1", device="d-1", name="train"))).result()
    done = _event("command.done", subject="c-1")
    take(_fact(1, done), device="d-2")
    assert _one(store, tables.commands).answer is None
    take(_fact(1, done))
    assert _one(store, tables.commands).answer["name"] == "command.done"


def test_a_will_of_an_older_session_changes_nothing(store: Store, take: Take) -> None:
    def online() -> bool:
        return next(bool(row.online) for row in _all(store, tables.devices) if row.id == "d-1")

    old = DeviceState(session=4, online=False, at="2026-05-01T00:00:00Z")
    take(DeviceState(session=5, online=True, at="2026-05-01T00:00:00Z", outbox=3), old)
    assert online()
    take(msgspec.structs.replace(old, session=5))
    assert not online()
    assert next(row.doc["outbox"] for row in _all(store, tables.devices) if row.id == "d-1") == 3


def test_what_is_retained_says_nothing_about_when_a_device_was_heard(store: Store, take: Take) -> None:
    take(DeviceState(session=5, online=True, at="2026-05-01T00:00:00Z"), retained=True)
    device = next(row for row in _all(store, tables.devices) if row.id == "d-1")
    assert (bool(device.online), device.last_seen) == (True, "")


def test_news_of_the_hardware_are_what_the_hub_then_shows(store: Store, take: Take) -> None:
    found = {"kind": "GPU", "proofs": [{"runtime": "openvino", "device": "gpu", "ok": True}]}
    told = _event("hardware.proven", data={"hardware": found, "models": ["m"]})
    take(_fact(1, told), _fact(2, _event("hardware.changed", data={"hardware": "broken"})))
    (device,) = [row for row in _all(store, tables.devices) if row.id == "d-1"]
    assert device.hardware == found
    assert [sorted(row.data) for row in _all(store, tables.events)] == [["cause", "models"], ["cause", "hardware"]]
