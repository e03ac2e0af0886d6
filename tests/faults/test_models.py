"""Versions that pass preflight and are ill once they serve, and one that only takes long to load."""

from collections.abc import Callable

import pytest

from tests.faults.prober import Prober
from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import ROWS, Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ILL = {
    "crash": ("new version kills the worker at every request", "worker_crashed"),
    "hang": ("healthy port, model answers nothing", "error_rate"),
    "garbage": ("healthy port, model answers no probability", "invalid_output"),
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=pytest.mark.fault(name), id=how) for how, (name, _) in ILL.items()]
)
def test_ill_version_is_left_for_the_last_good_one(yard: Yard, site: Site, table: Table, how: str) -> None:
    name, cause = ILL[how]
    good, bad = site.version, yard.push(release(site.folder))
    site.behave(bad, how)
    ended = yard.ended(yard.order(bad, site, rows=10 * ROWS))
    site.until(f"{good} to answer again", lambda: site.prober.serves == good and not site.prober.last_error)
    causes = [found for state, found in site.transitions() if state == "ROLLED_BACK"]
    row = site.judged(name, f"{ended}, {causes[-1] if causes else '-'}", f"ROLLED_BACK, {cause}")
    table.add(row)
    assert row.holds, f"{row}\n{site.said()}"


@pytest.mark.fault("one of two new versions kills the worker")
def test_version_beside_one_that_kills_the_worker_is_kept(
    yard: Yard, new_site: Callable[..., Site], table: Table
) -> None:
    """Both on probation in one worker; the innocent one's rollout must end as if the other had never been."""
    site = new_site().open()
    site.mark()
    good, innocent = site.version, yard.push(release(site.folder, model="price"))
    beside = Prober(site.state, "price")
    # So many rows that it is on probation until the other has been left.
    kept = yard.order(innocent, site, rows=60 * ROWS, model="price")
    try:
        site.until("the innocent one to be on probation", lambda: ("PROBATION", "activated") in site.transitions()[-1:])
        beside.start()
        bad = yard.push(release(site.folder))
        site.behave(bad, "crash")
        left = yard.ended(yard.order(bad, site, rows=10 * ROWS))
        site.until(f"{good} to answer again", lambda: site.prober.serves == good and not site.prober.last_error)
        ends = f"{left}, {yard.ended(kept)}"
    finally:
        beside.stop()
    causes = [cause for state, cause in site.transitions() if state == "ROLLED_BACK"]
    said = site.rows("SELECT sentence FROM transitions WHERE state = 'ROLLING_BACK'")
    row = site.judged("one of two new versions kills the worker", ends, "ROLLED_BACK, FINISHED")
    table.add(row)
    assert row.holds, f"{row}\n{site.said()}"
    assert causes == ["worker_crashed"]
    assert f"while delay {bad} was running" in said[0][0]


@pytest.mark.fault("slow but healthy starter, 15 s")
def test_version_that_takes_long_to_load_is_not_left(yard: Yard, site: Site, table: Table) -> None:
    version = yard.push(release(site.folder))
    site.behave(version, "slow 15")
    ended = yard.ended(yard.order(version, site))
    site.version = version
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    row = site.judged("slow but healthy starter, 15 s", ended, "FINISHED")
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("accelerator vanishes after activation")
def test_accelerator_that_vanishes_after_activation(yard: Yard, new_site: Callable[..., Site], table: Table) -> None:
    site = new_site("serving.device=npu")
    (site.faults / "npu").touch()
    site.open()
    assert site.status()["models"][0]["used"].startswith("NPU"), site.said()
    site.mark()
    good, version = site.version, yard.push(release(site.folder))
    site.arm("after:PROBATION")
    number = yard.order(version, site, rows=1000)
    site.reached()
    (site.faults / "npu").unlink()
    site.go_on()
    ended = yard.ended(number)
    site.until(f"{good} to answer again", lambda: site.prober.serves == good and not site.prober.last_error)
    causes = site.until(
        "the way back to be done", lambda: [found for state, found in site.transitions() if state == "ROLLED_BACK"]
    )
    used = site.until("the status to say where it runs", lambda: site.status()["models"][0]["used"])
    note = f"then on {used.split()[0]}"
    row = site.judged(
        "accelerator vanishes after activation", f"{ended}, {causes[-1]}", "PAUSED, accelerator_lost", note
    )
    table.add(row)
    assert row.holds, row
    assert used.startswith("CPU")
