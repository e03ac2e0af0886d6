"""SIGKILL of the supervisor at every journal write and every effect of a real update."""

import pytest

from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import ROWS, ROWS_OF_WORSE, Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PHASES = ("RECEIVED", "VERIFIED", "DOWNLOADING", "STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "COMMITTED")
POINTS = (
    *(f"{when}:{phase}" for phase in PHASES for when in ("before", "after")),
    *(f"{when}:{effect}" for effect in ("fetch", "prove", "activate", "look") for when in ("begin", "end")),
)
BACK = ("before:ROLLING_BACK", "after:ROLLING_BACK", "begin:restore", "before:ROLLED_BACK", "after:ROLLED_BACK")


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
