"""Mutual witnessing between a real hub and a real agent, over a real broker with its generated rules."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from landreeve.audit import verify

from tests.integration.test_agent_process import Site
from tests.integration.test_hub_process import Running


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[Running, Site]]:
    anywhere = ("http.port=0", "https.port=0", "broker.port=0", "pace.checkpoint_s=1")
    hub, site = Running(tmp_path / "hub", *anywhere).up(), Site(tmp_path / "site")
    yield hub, site
    for process in (site.process, hub.process):
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def until(ask: Callable[[], Any], right: Callable[[Any], bool], timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not right(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.3)
    return found


@pytest.mark.slow
def test_hub_and_site_carry_each_others_signatures_and_their_exports_say_so(
    fleet: tuple[Running, Site], tmp_path: Path
) -> None:
    hub, site = fleet
    token = (hub.state / "run" / "admin-token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{hub.ports()['url']}/api/v1/enrolment-tokens"
    made = httpx2.post(url, headers=headers, json={"site": "shop"}, timeout=20).json()
    site.init("--set", "audit.checkpoint_s=1", "--set", "link.reconnect_jitter_s=0")
    joined = site.cli("join", made["token"])
    assert joined.returncode == 0, joined.stderr
    site.start()
    assert site.cli("code").returncode == 0  # an act of the site
    ours = until(lambda: site.call("GET", "/api/v1/audit/status"), lambda s: 0 < s["witnessed"] == s["entries"])
    theirs = until(lambda: hub.get("audit/status").json(), lambda s: s["witnesses"] == 1 and s["sites"])
    assert theirs["sites"][0]["seen"] == ours["sealed"]
    assert (theirs["sites"][0]["refused"], ours["hub_refused"]) == ("", "")
    done = site.cli("audit", "export", str(tmp_path / "site.zip"))
    assert done.returncode == 0, done.stderr
    (tmp_path / "hub.zip").write_bytes(hub.get("audit/export").content)
    for name, key in (("site", ours["key"]), ("hub", theirs["key"])):
        report = verify.check(tmp_path / f"{name}.zip", key, [])
        assert isinstance(report, verify.Report)
        assert (report.whole, len(report.witnesses)) == (True, 1), report
    offline = site.cli("audit", "verify", "--offline", str(tmp_path / "site.zip"), "-o", "json")
    assert json.loads(offline.stdout)["whole"]
