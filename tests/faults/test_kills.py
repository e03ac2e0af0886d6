"""SIGKILL of the supervisor at every journal write and every effect of a real update."""

import pytest

from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import ROWS, ROWS_OF_WORSE, Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PHASES = ("RECEIVED", "VERIFIED", "DOWNLOADING", "STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "COMMITTED")
TRIED = ("DOWNLOADING", "PREFLIGHT", "ACTIVATING", "PROBATION")
RETURN = ("ROLLING_BACK", "ROLLED_BACK")
WRITES = (*PHASES, *(f"try-{phase}" for phase in TRIED))
WRITES_OF_RETURN = (*RETURN, "try-ROLLING_BACK")
POINTS = (
    *(f"{when}:{write}" for write in WRITES for when in ("before", "after")),
    *(f"{when}:{effect}" for effect in ("fetch", "prove", "activate", "look") for when in ("begin", "end")),
    *(f"{when}:pointer" for when in ("begin", "torn", "end")),
)
BACK = ("begin:restore", *(f"{when}:{write}" for write in WRITES_OF_RETURN for when in ("before", "after")))


def named(point: str) -> object:
    return pytest.param(point, marks=pytest.mark.fault(f"SIGKILL {point}"), id=point)


@pytest.mark.parametrize("point", [named(point) for point in (*POINTS, *BACK)])
def test_sigkill(yard: Yard, site: Site, table: Table, point: str) -> None:
    worse = point in BACK
    before, deaths = site.version, site.deaths
    version = yard.push(release(site.folder, worse=worse))
    site.arm(point, "die")
    ended = yard.ended(yard.order(version, site, rows=ROWS_OF_WORSE if worse else ROWS))
    site.version = before if worse else version
    site.until(f"{site.version} to answer", lambda: site.prober.serves == site.version)
    row = site.judged(f"SIGKILL {point}", ended, "ROLLED_BACK" if worse else "FINISHED")
    table.add(row)
    assert site.deaths == deaths + 1, f"nobody died at {point}: the point is not reached"
    assert row.holds, row


STRATEGIES: dict[str, dict[str, object]] = {
    "shadow": {"kind": "shadow", "min_s": 0.5, "min_rows": 5},
    "canary": {"kind": "canary", "shares": [0.3, 0.6], "step_s": 0.5, "step_rows": 5},
    "ab": {"kind": "ab", "key": "user", "shares": [0.5], "min_s": 0.5, "min_rows": 5},
    "blue_green": {"kind": "blue_green", "min_s": 0.5},
}
STEPS = [
    *((kind, f"{when}:step-PROBATION") for kind in ("shadow", "canary", "blue_green") for when in ("before", "after")),
    *((kind, "end:look") for kind in STRATEGIES),
]


def stepped(kind: str, point: str) -> object:
    return pytest.param(kind, point, marks=pytest.mark.fault(f"SIGKILL {point}, {kind}"), id=f"{kind}-{point}")


@pytest.mark.parametrize(("kind", "point"), [stepped(*one) for one in STEPS])
def test_sigkill_while_a_strategy_goes_on(yard: Yard, site: Site, table: Table, kind: str, point: str) -> None:
    version, deaths = yard.push(release(site.folder)), site.deaths
    site.arm(point, "die")
    ended = yard.ended(yard.order(version, site, strategy=STRATEGIES[kind]))
    site.version = version
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    row = site.judged(f"SIGKILL {point}, {kind}", ended, "FINISHED")
    table.add(row)
    assert site.deaths == deaths + 1, f"nobody died at {point}: the point is not reached"
    assert row.holds, row


@pytest.mark.parametrize(("worse", "writes"), [(False, WRITES), (True, WRITES_OF_RETURN)], ids=["update", "return"])
def test_every_journal_write_has_its_row(yard: Yard, site: Site, worse: bool, writes: tuple[str, ...]) -> None:
    version = yard.push(release(site.folder, worse=worse))
    (site.faults / "writes").unlink(missing_ok=True)
    yard.ended(yard.order(version, site, rows=ROWS_OF_WORSE if worse else ROWS))
    seen = set((site.faults / "writes").read_text().split())
    site.version = site.version if worse else version
    site.until(f"{site.version} to answer", lambda: site.prober.serves == site.version)
    assert seen - set(WRITES) - set(writes) == set(), "the journal writes what no row kills it at"
    assert seen >= set(writes)
