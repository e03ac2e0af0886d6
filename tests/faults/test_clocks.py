"""The clock jumps in the middle of an update: forward a year, back to 1970."""

import time
from collections.abc import Callable

import pytest

from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

YEAR_S = 365 * 86_400.0
WRONG_S = 8.0
JUMPS = {"forward a year": lambda: YEAR_S, "back to 1970": lambda: 300.0 - time.time()}


@pytest.fixture
def clocked(new_site: Callable[..., Site]) -> Site:
    """A site whose clock follows a file."""
    site = new_site()
    (site.faults / "offset").write_text("0")
    site.open()
    site.mark()
    return site


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.fault(f"clock jumps {way}")) for way in JUMPS])
def test_clock_jumps_and_is_set_right_again(yard: Yard, clocked: Site, table: Table, way: str) -> None:
    """In the middle of a probation that is not over by then; once it is right, the update comes to its end."""
    site, version = clocked, yard.push(release(clocked.folder))
    site.arm("end:look")
    number = yard.order(version, site, rows=150, probation={"max_s": 3600.0})
    site.reached()
    (site.faults / "offset").write_text(f"{JUMPS[way]():.0f}")
    site.go_on()
    time.sleep(WRONG_S)
    assert site.prober.serves == version, site.said()
    assert any(line["name"] == "clock.jumped" for line in site.status()["happened"])
    (site.faults / "offset").write_text("0")
    ended = yard.ended(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    after = yard.push(release(clocked.folder))
    again = yard.ended(yard.order(after, site))  # nothing of the wrong time is kept that would stand in the way
    site.until(f"{after} to answer", lambda: site.prober.serves == after)
    row = site.judged(f"clock jumps {way}", f"{ended}, next {again}", "FINISHED, next FINISHED")
    table.add(row)
    assert row.holds, row
