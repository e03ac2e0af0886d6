"""The agent's store is damaged: while it was stopped, and while it runs, in the middle of an update."""

from collections.abc import Callable

import pytest

from tests.faults.releases import release
from tests.faults.table import Table
from tests.faults.yard import Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def damage(site: Site, *, head: bool = False) -> None:
    """Rubbish over the file's head, or over most pages of it and of its log, as a dying disk writes it."""
    for name, begin in (("agent.db", 0 if head else 4096), ("agent.db-wal", 4096)):
        path = site.state / name
        if not path.exists() or path.stat().st_size <= begin:
            continue
        with path.open("r+b") as file:
            size = file.seek(0, 2)
            file.seek(begin)
            file.write(b"\xa5" * (size - begin))


@pytest.mark.parametrize("head", [True, False], ids=["head", "pages"])
@pytest.mark.fault("corrupt store while stopped, mid-update")
def test_store_damaged_while_stopped(yard: Yard, new_site: Callable[..., Site], table: Table, head: bool) -> None:
    site = new_site().open()
    site.mark()
    good, version = site.version, yard.push(release(site.folder))
    site.arm("begin:prove")
    number = yard.order(version, site)
    site.reached()
    site.disarm()
    site.forget_rows()
    site.stop()
    damage(site, head=head)
    site.start()
    site.until(f"{good} to answer", lambda: site.prober.serves == good and not site.prober.last_error)
    ended = yard.ended(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    assert list(site.state.glob("agent.db.damaged-*")), "the damaged file is kept for who can repair it"
    assert any(line["name"] == "store.damaged" for line in site.status()["happened"])
    row = site.judged("corrupt store while stopped, mid-update", ended, "FINISHED", "an empty one took its place")
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("corrupt store while it runs, mid-update")
def test_store_damaged_while_it_runs(yard: Yard, new_site: Callable[..., Site], table: Table) -> None:
    site = new_site().open()
    site.mark()
    version = yard.push(release(site.folder))
    site.arm("begin:prove")
    number = yard.order(version, site)
    site.reached()
    site.forget_rows()
    damage(site)
    site.go_on()
    site.until("the agent to notice", lambda: "is not a database" in site.said() or "malformed" in site.said())
    ended = yard.ended(number)
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    aside = list(site.state.glob("agent.db.damaged-*"))
    note = "an empty one took its place" if aside else "whole again without its log, after a restart"
    row = site.judged("corrupt store while it runs, mid-update", ended, "FINISHED", note)
    table.add(row)
    assert row.holds, row
