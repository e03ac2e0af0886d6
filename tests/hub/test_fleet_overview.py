"""A fleet at a glance: what is drawn, counted and paged of thousands, and what that costs the store."""

from datetime import timedelta
from typing import Any

import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.api import device_views
from landreeve_hub.api.paced import LARGE, Paced
from landreeve_hub.console.drift import furthest_off
from landreeve_hub.console.rollouts import FEW, told
from landreeve_hub.fleet import overview
from landreeve_hub.ingest.minutes import encode_minute
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from sqlalchemy import Engine, event, insert, update

from tests.hub.hub_without_broker import Hub, rolled_out


def row(n: int, state: str = "healthy", **more: Any) -> dict[str, Any]:
    return {"id": f"d-{n}", "site": f"s-{n:04d}", "state": state, "models": [], **more}


def test_of_a_large_fleet_only_sites_worth_a_look_are_drawn_and_the_worst_are_kept() -> None:
    few = [row(n) for n in range(overview.MOST_CELLS)]
    assert len(overview.cells(few)) == overview.MOST_CELLS
    many = [row(n) for n in range(5000)] + [row(9000, "offline"), row(9001, "failing")]
    assert [cell["id"] for cell in overview.cells(many)] == ["d-9000", "d-9001"]
    worse = [row(n, "offline") for n in range(overview.MOST_CELLS + 50)] + [row(9001, "failing")]
    drawn = overview.cells(worse)
    assert (len(drawn), drawn[-1]["state"]) == (overview.MOST_CELLS, "failing")
    assert overview.counts(worse) == {"healthy": 0, "drift": 0, "failing": 1, "offline": 650, "total": 651}


def test_pages_hold_every_device_once_also_when_states_change_between_them() -> None:
    rows = [row(n, ("healthy", "offline", "failing")[n % 3]) for n in range(250)]
    seen, after = list[str](), ""
    while True:
        page = overview.page(rows, "", after, 100)
        seen += [one["id"] for one in page["items"]]
        rows = [one for one in rows if one["id"] != seen[0]]  # one that was shown is gone
        if not page["next"]:
            break
        after = page["next"]
    assert (len(seen), len(set(seen))) == (250, 250)
    assert overview.page(rows, "is:failing", "", 10)["matching"] == sum(one["state"] == "failing" for one in rows)
    with pytest.raises(ValueError, match="after: 'x'"):
        overview.page(rows, "", "x", 10)


def test_what_runs_where_is_counted_by_release_with_the_first_sites() -> None:
    serving = [{"model": "m", "release": "sha256:" + "a" * 24}]
    rows = [row(n, models=serving) for n in range(9)] + [row(10, models=[{"model": "m", "release": ""}])]
    (found,) = overview.running(rows)
    assert (found["release"], found["sites"], len(found["first"])) == ("a" * 24, 9, overview.FIRST_SITES)


async def test_the_rows_of_a_fleet_are_those_of_each_device_and_cost_no_query_for_each(hub: Hub) -> None:
    await hub.store.write(lambda c: fill(c, hub, 40))
    asked = list[str]()

    def note(*told: Any) -> None:
        asked.append(told[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        whole = await hub.store.read(lambda c: device_views.rows(c, hub.now))
        for_all = len(asked)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    single = [await hub.store.read(lambda c, d=one["id"]: device_views.rows(c, hub.now, [d])[0]) for one in whole]
    assert whole == single
    assert for_all < 15
    first = whole[0]
    assert (first["p95_ms"], first["psi"], first["state"]) == (1.5, 0.4, "failing")
    assert first["certificate_days"] == pytest.approx(9.0)
    assert [one["state"] for one in whole[1:4]] == ["drift", "healthy", "healthy"]


def fill(connection: Any, hub: Hub, number: int) -> None:
    """Devices with windows, metrics, and one with a certificate that is not the one last issued and an incident."""
    soon = rfc3339(hub.now + timedelta(days=9))
    at = int(hub.now.timestamp()) // 60
    for n in range(number):
        doc = {"models": [{"model": "m", "version": "1", "release": "r", "state": "working"}]}
        doc |= {"certificate_serial": "old"} if n == 0 else {}
        known = {"id": f"d-{n}", "site": f"s-{n:03d}", "online": True, "last_seen": rfc3339(hub.now), "doc": doc}
        connection.execute(insert(tables.devices).values(**known, certificate_serial=f"c-{n}", hardware={"cpu": "x"}))
        for window in (1, 2):
            report = {
                "verdict": "drifted" if (n, window) == (1, 2) else "stable",
                "scores": {"a": 0.1, "b": 0.2 * window},
            }
            key = {"device": f"d-{n}", "model": "m", "window": window}
            connection.execute(insert(tables.windows).values(**key, release="r", report=report))
        connection.execute(insert(tables.metric_sets).values(device=f"d-{n}", set=7, names=["p95_ms"]))
        for minute, value in ((at - 1, 9.9), (at, 1.5)):
            told = {"device": f"d-{n}", "minute": minute, "set": 7, "values": encode_minute([(60.0 * minute, value)])}
            connection.execute(insert(tables.metrics).values(told))
    connection.execute(insert(tables.certificates).values(serial="old", device="d-0", expires=soon))
    incident = {"id": "i-1", "kind": "k", "key": "k", "state": "open", "severity": "error", "sentence": "It burns."}
    connection.execute(insert(tables.incidents).values(**incident, subject={"device": "d-0"}))


def test_of_a_large_wave_trouble_is_told_first_and_the_rest_is_named() -> None:
    small = [row(n, "committed") for n in range(FEW)]
    assert told(small) == {"told": small, "named": [], "left": 0}
    states = ["committed"] * 150 + ["probation"] * 120 + ["failed"] + ["waiting"] * 300
    wave = told([row(n, state) for n, state in enumerate(states)])
    assert (wave["told"][0]["state"], len(wave["told"]), len(wave["named"])) == ("failed", 100, 200)
    assert sum(len(part) for part in (wave["told"], wave["named"])) + wave["left"] == len(states)


def test_of_many_sites_those_that_lost_quality_and_those_furthest_off_are_shown() -> None:
    sites = [f"s-{n:04d}" for n in range(3000)]
    scores = {site: (0.9 if site in {"s-0007", "s-0008"} else 0.01) for site in sites}
    limits = {site: {"temp": 100.0 if site == "s-0008" else 0.2} for site in sites}
    found = {"sites": sites, "columns": ["temp"], "matrix": {"temp": scores}, "thresholds": limits}
    found["verdicts"] = {"s-2999": {"verdict": "quality_lost"}}
    assert furthest_off(found, 3) == ["s-0000", "s-0007", "s-2999"]
    assert furthest_off({**found, "sites": sites[:2]}, 3) == sites[:2]


async def test_rollouts_that_are_over_are_listed_without_their_members(hub: Hub) -> None:
    await hub.enrol()
    ann, bob = await hub.person("ann", Role.ML_ENGINEER), await hub.person("bob", Role.APPROVER)
    rollout = await rolled_out(hub, ann, bob)
    assert (await ann.get("/api/v1/rollouts", params={"ended": "true"})).json() == []
    assert (await ann.post(f"/api/v1/rollouts/{rollout['id']}/abort")).status_code == 200
    (brief,) = (await ann.get("/api/v1/rollouts", params={"ended": "true"})).json()
    (whole,) = (await ann.get("/api/v1/rollouts")).json()
    same = ("id", "model", "version", "state", "cause", "sentence", "created", "created_by", "approved_by", "release")
    assert {name: brief[name] for name in same} == {name: whole[name] for name in same}
    for name in ("total", "committed", "failed", "silent", "excluded"):
        assert brief["waves"][0][name] == sum(wave[name] for wave in whole["waves"]), name


async def test_a_small_fleet_is_read_anew_and_a_large_one_kept_for_as_long_as_it_cost(hub: Hub) -> None:
    made = list[int]()

    def make(_: Any) -> list[int]:
        made.append(len(made))
        return [len(made)] * sizes[len(made) - 1]

    sizes = [LARGE, LARGE, LARGE + 1, 3]
    paced = Paced(hub.store, make, len)
    assert [(await paced.get())[0] for _ in range(3)] == [1, 2, 3]
    paced._kept = (float("inf"), [9])
    assert await paced.get() == [9]
    paced._kept = (0.0, [9])
    assert await paced.get() == [4] * 3


async def test_a_fleet_is_asked_for_by_filter_and_page_and_says_what_is_wrong_with_a_cursor(hub: Hub) -> None:
    viewer = await hub.person("vic", Role.VIEWER)
    await hub.store.write(lambda c: fill(c, hub, 7))
    await hub.store.write(lambda c: c.execute(update(tables.devices).values(online=False)) and None)
    found = (await viewer.get("/api/v1/fleet/devices", params={"filter": "s-00 -s-003", "limit": 4})).json()
    assert ([one["site"] for one in found["items"]], found["matching"]) == (["s-000", "s-001", "s-002", "s-004"], 6)
    rest = (await viewer.get("/api/v1/fleet/devices", params={"filter": "s-00 -s-003", "after": found["next"]})).json()
    assert ([one["site"] for one in rest["items"]], rest["next"]) == (["s-005", "s-006"], None)
    assert (await viewer.get("/api/v1/fleet/devices", params={"after": "?"})).status_code == 422
    summary = (await viewer.get("/api/v1/fleet/summary")).json()
    assert (summary["counts"]["offline"], len(summary["cells"]), summary["cells_left_out"]) == (7, 7, 0)
    assert summary["running"] == [
        {"model": "m", "release": "r", "sites": 7, "first": [{"id": f"d-{n}", "site": f"s-{n:03d}"} for n in range(4)]}
    ]
