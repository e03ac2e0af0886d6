"""Line, broker and hub fail in the middle of an update."""

import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.faults.line import Line
from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("point", ["begin:fetch", "begin:prove", "after:PROBATION"])
@pytest.mark.fault("broker killed in the middle, three times")
def test_broker_killed(yard: Yard, site: Site, table: Table, point: str) -> None:
    version = yard.push(release(site.folder))
    site.arm(point)
    number = yard.order(version, site)
    site.reached()
    (broker,) = [c for c in psutil.Process(yard.process._process.pid).children() if "python" not in c.name()]
    broker.kill()
    site.go_on()
    ended = yard.ended(number)
    site.version = version
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    row = site.judged("broker killed in the middle, three times", ended, "FINISHED")
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("hub killed mid-wave, three sites")
def test_hub_killed_in_the_middle_of_a_wave(
    yard: Yard, site: Site, new_site: Callable[..., Site], table: Table
) -> None:
    """One site is on probation, one downloads, one is not ordered yet."""
    sites = [site, *(new_site().open() for _ in range(2))]
    for one in sites:
        one.mark()
    version = yard.push(release(site.folder))
    site.arm("after:PROBATION")
    sites[1].arm("begin:fetch")
    number = yard.order(version, *sites, gate={"max_in_flight": 2})
    for one in sites[:2]:
        one.reached()
    yard.process.kill()
    for one in sites[:2]:
        one.go_on()
    time.sleep(2.0)
    yard.process.start()
    ended = yard.ended(number)
    for one in sites:
        one.until(f"{version} to answer", lambda one=one: one.prober.serves == version)  # type: ignore[misc]
        one.version = version
    rows = [one.judged("hub killed mid-wave, three sites", ended, "FINISHED") for one in sites]
    for row in rows:
        table.add(row)
    assert all(row.holds for row in rows), rows


@pytest.fixture
def line(yard: Yard) -> Iterator[Line]:
    made = Line(yard.ports["broker"])
    yield made
    made.close()


@pytest.fixture
def far_site(new_site: Callable[..., Site], line: Line) -> Site:
    """A site whose link goes through the line."""
    site = new_site().open(broker_port=line.port)
    site.mark()
    return site


@pytest.mark.fault("partition exactly at commit, and 45 s long")
def test_partition_exactly_at_commit(yard: Yard, far_site: Site, line: Line, table: Table) -> None:
    """The line is cut while the transaction that enters COMMITTED is open: who committed must stay so without a hub."""
    site, version = far_site, yard.push(release(far_site.folder))
    site.arm("before:COMMITTED")
    number = yard.order(version, site)
    site.reached()
    line.cut()
    site.go_on()
    site.until("the commit", lambda: site.transitions()[-1][0] == "COMMITTED")
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    assert yard.rollout(number)["state"] == "RUNNING"
    time.sleep(45.0)
    assert site.transitions()[-1][0] == "COMMITTED"
    assert site.prober.serves == version
    line.mend()
    row = site.judged("partition exactly at commit, and 45 s long", yard.ended(number), "FINISHED")
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("corrupt artifact: bytes flipped on the way")
def test_bytes_flipped_on_the_way(yard: Yard, far_site: Site, line: Line, table: Table) -> None:
    site, version = far_site, yard.push(release(far_site.folder, card_bytes=400_000))
    site.arm("begin:fetch")
    number = yard.order(version, site)
    site.reached()
    line.spoil(3)
    site.go_on()
    ended = yard.ended(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    assert line.spoilt == 3
    row = site.judged("corrupt artifact: bytes flipped on the way", ended, "FINISHED")
    table.add(row)
    assert row.holds, row
