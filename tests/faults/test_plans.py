"""Plans that hold an update back or let it share the traffic, gone through to their ends with nothing going wrong."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx2
import pytest

from tests.agent.onnx_models import body
from tests.faults.releases import MODEL, release
from tests.faults.table import Table
from tests.faults.yard import Site, Yard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KOLKATA = ZoneInfo("Asia/Kolkata")
STRATEGIES: dict[str, dict[str, object]] = {
    "shadow": {"kind": "shadow", "min_s": 2.0, "min_rows": 20},
    "ab": {"kind": "ab", "key": "hour", "shares": [0.5], "min_s": 2.0, "min_rows": 20},
    "blue_green": {"kind": "blue_green", "min_s": 2.0, "max_s": 60.0},
}


@pytest.mark.fault("no fault: shadow, A/B and blue-green to their ends")
def test_each_strategy_comes_to_its_end(yard: Yard, site: Site, table: Table) -> None:
    ends = []
    for strategy in STRATEGIES.values():
        version = yard.push(release(site.folder))
        number = yard.order(version, site, strategy=strategy)
        site.until("the site to say by when it is decided", lambda: site.status()["models"][0]["update"]["until"])
        ends.append(yard.ended(number))
        site.version = version
        site.until(f"{version} to answer", lambda: site.prober.serves == site.version)
    ended = ends[0] if len(set(ends)) == 1 else ", ".join(ends)
    row = site.judged("no fault: shadow, A/B and blue-green to their ends", ended, "FINISHED", runs=len(ends))
    table.add(row)
    assert row.holds, row


@pytest.mark.fault("no fault: activation window closed when ordered")
def test_window_that_opens_later_is_waited_for(yard: Yard, site: Site, table: Table) -> None:
    """On the site's own clock; longer than what counts as silence, which is no silence while the window is closed."""
    version = yard.push(release(site.folder))
    opens = (datetime.now(KOLKATA) + timedelta(seconds=120)).replace(second=0, microsecond=0)
    window = {"start": f"{opens:%H:%M}", "end": f"{opens + timedelta(hours=1):%H:%M}"}
    plan: dict[str, Any] = {"windows": {"zone": str(KOLKATA), "activate": [window]}, "gate": {"deadline_s": 30.0}}
    number = yard.order(version, site, **plan)
    said = (
        f"{site.name} is outside the maintenance windows; the next opens at {opens.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    )
    site.until("the rollout to say what it waits for", lambda: said in yard.rollout(number)["waiting"])
    own = f"{opens:%a %H:%M} on ({KOLKATA})"  # once it has been tried out, which it may be before
    site.until("the site to say so too", lambda: own in site.status()["models"][0]["update"]["sentence"])
    ended = yard.ended(number, 200.0)
    early = datetime.now(UTC) < opens
    site.version = version
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    row = site.judged("no fault: activation window closed when ordered", ended, "FINISHED")
    table.add(row)
    assert row.holds, f"{row}\n{yard.rollout(number)['sentence']}"
    assert not early, "it was activated before the window opened"


def later(site: Site, rows: int, at: str) -> None:
    """Rows that an application sends of another day."""
    for number in range(rows):
        asked = body(id=f"later-{number}", parameters={"at": at})
        answer = httpx2.post(f"{site.status()['serving']}/v2/models/{MODEL}/infer", json=asked, timeout=20)
        assert answer.status_code == 200, answer.text


@pytest.mark.fault("no fault: drift gate (max_psi) that waits for a window")
def test_gate_on_drift_waits_for_a_closed_window(yard: Yard, new_site: Callable[..., Site], table: Table) -> None:
    site = new_site("drift.every_s=0.5").open()
    site.mark()
    version = yard.push(release(site.folder, baseline=True))
    figures = {"max_psi": 0.2, "min_window_rows": 400}
    number = yard.order(version, site, gate={"figures": figures, "deadline_s": 90.0})
    site.until(f"{version} to answer", lambda: site.prober.serves == version)
    site.until(
        "the rollout to say that it has no proof",
        lambda: any("no proof yet" in one for one in yard.rollout(number)["waiting"]),
    )
    site.until("rows enough", lambda: list(site.prober.answered.values()).count(version) > 600)
    site.until("them in the store", site.taken_in)
    later(site, 8, "2026-02-28T09:30:00Z")  # event time passes: the window of the prober's day is closed
    ended = yard.ended(number)
    site.version = version
    row = site.judged("no fault: drift gate (max_psi) that waits for a window", ended, "FINISHED")
    table.add(row)
    assert row.holds, f"{row}\n{yard.rollout(number)}"
