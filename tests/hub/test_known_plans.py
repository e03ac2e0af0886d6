"""What devices tell of plans: kept once, believed as a hint, and passed on to boxes of the same class only."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from alembic import command
from landreeve.wire.codec import encode
from landreeve.wire.messages import Birth, DesiredModel, Fact, PlanReport
from landreeve.wire.plans import MOST_HINTS, BoxFacts, PlanTrial, RunPlan
from landreeve_hub.desired.document import content_hash
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import Arrival, Outcome, commit_batch
from landreeve_hub.learning import known_plans
from landreeve_hub.learning.plans import Vote, hints, standings
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.migrate import configuration
from landreeve_hub.store.upsert import upsert
from sqlalchemy import create_engine, select, text, update

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
RELEASE = "ab" * 32
FAST = RunPlan(backend="openvino", device="cpu", precision="int8", threads=2, recipe="nncf")
SLOW = RunPlan(backend="onnxruntime", device="cpu", precision="fp32")
Say = Callable[..., Outcome]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "hub.db")
    for device in ("d-1", "d-2", "d-3", "d-4"):
        row = {"id": device, "fleet": "f", "site": device.upper()}
        opened.submit(lambda c, row=row: upsert(c, tables.devices, row)).result()
    yield opened
    opened.close()


@pytest.fixture
def say(store: Store) -> Say:
    """Commits one fact of a device."""
    appliers = standard_appliers(audit=lambda _c, _d, _f: None)

    def run(device: str, body: Any, seq: int = 1) -> Outcome:
        fact = Fact(epoch=7, seq=seq, at=f"2026-05-01T11:{seq:02d}:00Z", body=body)
        arrivals = [Arrival(device, encode(fact))]
        return store.submit(lambda c: commit_batch(c, arrivals, [], appliers, NOW)).result()

    return run


def report(plan: RunPlan = FAST, box_class: str = "n100", ratio: float | None = 0.3, **more: Any) -> PlanReport:
    told = PlanReport(
        model="m", release=RELEASE, version="3", box_class=box_class, box=BoxFacts(cpu="Intel N100", threads=2),
        plan=plan, ratio=ratio, seconds=9.0,
    )  # fmt: skip
    return msgspec.structs.replace(told, **more)


def birth(box_class: str) -> Birth:
    return Birth(
        agent="0.2", site="s", started="2026-05-01T11:00:00Z", hardware={}, metric_names=(), metric_set=1,
        certificate_expires="", box_class=box_class,
    )  # fmt: skip


def hinted(store: Store, device: str, release: str = RELEASE) -> tuple[RunPlan, ...]:
    return store.submit_read(lambda c: known_plans.hints_for(c, device, release)).result()


def listed(store: Store, **only: str) -> list[dict[str, Any]]:
    return store.submit_read(lambda c: known_plans.listed(c, **only)).result()


# --- deriving ---


def test_most_boxes_win_over_the_best_ratio_of_one() -> None:
    found = standings([Vote(SLOW, 1.0), Vote(SLOW, 1.0), Vote(FAST, 0.1)])
    assert [(s.plan, s.boxes, s.ratio) for s in found] == [(SLOW, 2, 1.0), (FAST, 1, 0.1)]


def test_boxes_that_were_hinted_a_plan_cannot_outvote_those_that_found_another() -> None:
    told = [Vote(SLOW, 0.8), *[Vote(SLOW, 0.8, hinted=True)] * 9, Vote(FAST, 0.3), Vote(FAST, 0.3)]
    first = standings(told)[0]
    assert (first.plan, first.boxes, first.found) == (FAST, 2, 2)


def test_ties_go_to_the_faster_plan_and_an_untold_ratio_is_no_gain() -> None:
    assert standings([Vote(SLOW, None), Vote(FAST, 0.9)])[0].plan == FAST


def test_hints_are_few_and_none_that_nobody_could_mean() -> None:
    odd = msgspec.structs.replace(FAST, backend="shell")
    many = [Vote(msgspec.structs.replace(FAST, threads=n), 0.1 * n) for n in range(1, 9)]
    assert odd not in hints([Vote(odd, 0.01), *many])
    assert len(hints(many)) == MOST_HINTS


# --- keeping ---


def test_box_of_the_same_class_starts_from_the_winner_and_others_do_not(store: Store, say: Say) -> None:
    say("d-1", report())
    say("d-2", birth("n100"))
    say("d-3", birth("rpi5"))
    assert hinted(store, "d-2") == (FAST,)
    assert hinted(store, "d-3") == ()
    assert hinted(store, "d-4") == ()  # it never told its class
    assert hinted(store, "d-2", "cd" * 32) == ()


def test_newest_report_counts_whatever_order_they_come_in(store: Store, say: Say) -> None:
    say("d-1", report(SLOW), seq=2)
    say("d-1", report(FAST), seq=1)
    (row,) = listed(store)
    assert (row["winner"]["name"], row["boxes"]) == (SLOW.name, 1)


def test_repeat_changes_nothing(store: Store, say: Say) -> None:
    say("d-1", report())
    say("d-1", report(SLOW))  # the same number again
    assert listed(store)[0]["winner"]["plan"]["backend"] == "openvino"


def test_revoked_box_has_no_say(store: Store, say: Say) -> None:
    say("d-1", report())
    say("d-2", birth("n100"))
    store.submit(lambda c: c.execute(update(tables.devices).values(revoked=tables.devices.c.id == "d-1"))).result()
    assert hinted(store, "d-2") == ()
    assert listed(store) == []


@pytest.mark.parametrize(
    "change",
    [
        {"box_class": ""},
        {"box_class": "c" * 500},
        {"ratio": -0.5},
        {"trials": tuple(PlanTrial(what="w", accepted=True) for _ in range(100))},
        {"sentence": "s" * 100_000},
    ],
)
def test_report_beyond_all_bounds_is_refused_with_its_reason(store: Store, say: Say, change: dict[str, Any]) -> None:
    outcome = say("d-1", report(**change))
    assert (outcome.refused, len(outcome.acks)) == (1, 1)
    assert listed(store) == []
    reason = store.submit_read(lambda c: c.execute(select(tables.rejections.c.reason)).scalar_one()).result()
    assert "plan" in reason


def test_plan_of_an_unknown_backend_is_shown_and_never_passed_on(store: Store, say: Say) -> None:
    say("d-1", report(msgspec.structs.replace(FAST, backend="hailo")))
    say("d-2", birth("n100"))
    assert listed(store)[0]["winner"]["plan"]["backend"] == "hailo"
    assert hinted(store, "d-2") == ()


def test_old_releases_of_a_model_are_forgotten(store: Store, say: Say) -> None:
    for n in range(1, known_plans.KEPT_RELEASES + 4):
        say("d-1", report(release=f"{n:064x}"), seq=n)
    kept = [row["release"] for row in listed(store)]
    assert len(kept) == known_plans.KEPT_RELEASES
    assert f"{1:064x}" not in kept


def test_list_groups_by_class_and_names_who_agrees(store: Store, say: Say) -> None:
    for device, plan, name in (
        ("d-1", FAST, "n100"),
        ("d-2", FAST, "n100"),
        ("d-3", SLOW, "n100"),
        ("d-4", SLOW, "rpi5"),
    ):
        say(device, report(plan, name, ratio=0.3 if plan == FAST else 1.0))
    rows = {row["box_class"]: row for row in listed(store, model="m", release=RELEASE[:10])}
    assert (rows["n100"]["winner"]["boxes"], rows["n100"]["boxes"]) == (2, 3)
    assert [one["site"] for one in rows["n100"]["reports"]] == ["D-1", "D-2", "D-3"]
    assert rows["rpi5"]["winner"]["name"] == SLOW.name
    assert listed(store, model="other") == []


# --- ordering ---


def test_hint_found_later_makes_no_new_generation() -> None:
    order = DesiredModel(model="m", release=RELEASE, version="3", manifest_bytes=9, rollout="r")
    assert content_hash([order], None) == content_hash([msgspec.structs.replace(order, hints=(FAST,))], None)
    # The digest of a hub of before, so that its devices get no new generation by the change.
    assert content_hash([order], None) == "ce4f81648ec503055dab24ce4d6af42beb3ccc985d6d242c739261314ac1720f"


def test_hub_of_before_gets_its_new_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    engine, config = create_engine(url), configuration()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO devices (id, site) VALUES ('d-1', 'EWR')"))
    engine.dispose()
    store = Store(url)
    assert hinted(store, "d-1") == ()
    store.close()
