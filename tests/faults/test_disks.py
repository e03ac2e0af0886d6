"""The disk is full: before the first block, while a release is laid out, and when the site has to go back."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import ROWS_OF_WORSE, Site, Yard
from tests.integration.test_faults import fill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 1024 * 1024
DISK_MIB = 180
# So long it stays full once the trouble has shown.
FULL_S = 6.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own for a site's state."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_site(disk: Path, new_site: Callable[..., Site]) -> Iterator[Site]:
    site = new_site(state=disk / "state").open()
    site.mark()
    yield site
    site.close()  # before its disk goes


@pytest.mark.fault("disk full in download")
def test_disk_full_in_download(yard: Yard, small_site: Site, disk: Path, table: Table) -> None:
    """Nearly full before the first block: refused with the reason, and nobody's fault. With room it goes."""
    site = small_site
    packed = release(site.folder)
    version = yard.push(packed)
    ballast = fill(disk, leave=20 * MIB)
    ended = yard.ended(yard.order(version, site))
    cause = next(found for state, found in reversed(site.transitions()) if state == "REJECTED")
    assert site.rows("SELECT count(*) FROM quarantine") == [(0,)]
    ballast.unlink()
    yard.abort_all()
    again = yard.ended(yard.order(version, site))  # the release was not to blame: no reason to force it is asked for
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    expected = "PAUSED, disk_full; with room FINISHED"
    row = site.judged("disk full in download", f"{ended}, {cause}; with room {again}", expected)
    table.add(row)
    assert row.holds, row


MIDDLE = {"disk full while blocks arrive": "block", "disk full in stage": "stage"}


@pytest.mark.parametrize("fault", [pytest.param(fault, marks=pytest.mark.fault(fault)) for fault in MIDDLE])
def test_disk_full_in_the_middle(yard: Yard, small_site: Site, disk: Path, table: Table, fault: str) -> None:
    """Store and models share the disk, so that not even the failure can be written down until there is room."""
    site, version = small_site, yard.push(release(small_site.folder))
    site.arm(MIDDLE[fault])
    number = yard.order(version, site)
    site.reached()
    ballast = fill(disk)
    site.go_on()
    full(site)
    ballast.unlink()
    ended = yard.ended(number)
    last = site.version if ended != "FINISHED" else version
    site.until(f"{last} to answer", lambda: site.prober.serves == last)
    site.until("the spool to be taken in", site.taken_in)
    note = site.forget_rows()
    row = site.judged(fault, ended, "FINISHED", note)
    table.add(row)
    assert site.rows("SELECT count(*) FROM quarantine") == [(0,)]
    assert row.holds, row


@pytest.mark.fault("disk full in rollback")
def test_disk_full_in_rollback(yard: Yard, small_site: Site, disk: Path, table: Table) -> None:
    """The last good version must answer while the disk is still full, although nothing can be written about it."""
    site, good = small_site, small_site.version
    version = yard.push(release(site.folder, worse=True))
    site.arm("after:ROLLING_BACK")
    number = yard.order(version, site, rows=ROWS_OF_WORSE)
    site.reached()
    ballast = fill(disk)
    site.go_on()
    site.until(f"{good} to answer on a full disk", lambda: site.prober.serves == good, 40)
    full(site)
    assert site.prober.serves == good
    ballast.unlink()
    ended = yard.ended(number)
    site.until(f"{good} to answer", lambda: site.prober.serves == good)
    site.until("the spool to be taken in", site.taken_in)
    note = site.forget_rows()
    row = site.judged("disk full in rollback", ended, "ROLLED_BACK", note)
    table.add(row)
    assert row.holds, row


def full(site: Site) -> None:
    """Stay full for a while; the site answers all the time, and says what is wrong."""
    before = len(site.prober.answered)
    time.sleep(FULL_S)
    assert len(site.prober.answered) > before, site.said()
    verdict = site.until("the site to say so", lambda: _trouble(site))
    assert "disk" in verdict.lower() or "full" in verdict.lower(), verdict


def _trouble(site: Site) -> str:
    verdict = site.status()["verdict"]
    return f"{verdict['sentence']} {verdict['detail']}" if verdict["level"] != "ok" else ""
