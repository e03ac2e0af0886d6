"""Both doctors on a real hub and a box: everything in order, and then one thing after another that is not."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve.cli import Check
from landreeve.trust.floor import raise_floor
from landreeve_agent.commands.checks import _time
from landreeve_agent.commands.checks_link import examine_link
from landreeve_hub.commands.doctor import examine

from tests.integration.hub_site import Box, HubProcess, now

EPOCH = datetime.fromtimestamp(0, UTC)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    hub = HubProcess(tmp_path_factory.mktemp("doctor") / "hub")
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def box(hub: HubProcess, tmp_path: Path) -> Box:
    box = Box(tmp_path / "box")
    box.join(hub.token(f"site-{os.urandom(3).hex()}"))
    return box


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.check: check for check in checks}


def hub_doctor(hub: HubProcess, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    command = [sys.executable, "-m", "landreeve_hub", "doctor", "--state", str(hub.folder), "-o", "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, {row["check"]: row for row in json.loads(done.stdout)}


def test_box_that_is_in_order_has_nothing_to_mend(box: Box) -> None:
    found = by_name(examine_link(box.state, broker=True))
    assert {check.state for check in found.values()} == {"ok"}, found
    assert "90 days left" in found["certificate"].fact or "89 days left" in found["certificate"].fact
    assert "lets this device in" in found["broker"].fact
    assert "own topics work" in found["broker rules"].fact
    assert "it answers; clocks differ by" in found["hub over HTTPS"].fact


def test_clock_that_is_behind_what_is_known_is_named(box: Box) -> None:
    raise_floor(box.state.trust, now() + timedelta(days=30), EPOCH)
    check = by_name(_time(box.state))["clock"]
    assert (check.state, "set the clock" in check.fix) == ("fail", True)


@pytest.mark.slow
def test_revoked_box_is_told_so_by_the_broker(hub: HubProcess, box: Box) -> None:
    hub.post(f"devices/{box.device}/revoke")
    check = by_name(examine_link(box.state, broker=True))["broker"]
    assert check.state == "fail"


def test_certificate_of_another_name_and_damaged_keys_are_named(box: Box) -> None:
    identity = json.loads(box.state.identity.read_text())
    box.state.identity.write_text(json.dumps(identity | {"device": "d-other"}))
    check = by_name(examine_link(box.state, broker=False))["certificate"]
    assert (check.state, "--again" in check.fix) == ("fail", True)
    (box.state.root / "keys" / "device.key").write_text("-----BEGIN")
    assert by_name(examine_link(box.state, broker=False))["certificate"].state == "fail"


def test_doctor_mends_permissions_and_ends_with_three_on_problems(box: Box) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "landreeve_agent", "--state", str(box.state.root), "doctor", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    key = box.state.root / "keys" / "device.key"
    key.chmod(0o644)
    done = run("--fix", "-o", "json")
    assert "mended: " in done.stderr
    assert key.stat().st_mode & 0o777 == 0o600
    assert done.returncode == 0, done.stdout
    key.write_text("damaged")
    assert run("-o", "json").returncode == 3


@pytest.mark.slow
def test_hub_that_is_in_order_fails_no_check(hub: HubProcess, box: Box) -> None:
    code, found = hub_doctor(hub, "--broker")
    assert code == 0, found
    assert {row["check"] for row in found.values() if row["state"] == "fail"} == set()
    assert "good until" in found["revocation list"]["fact"]
    assert found["broker"]["fact"] == "it keeps devices apart"
    assert "days" in found["device certificates"]["fact"]
    assert found["backup"]["state"] == "warn"
    (hub.folder / "run" / "last-backup").touch()
    assert hub_doctor(hub)[1]["backup"]["state"] == "ok"


@pytest.mark.slow
async def test_stopped_hub_is_judged_by_its_folder(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "hub")
    await asyncio.to_thread(hub.start)
    await asyncio.to_thread(hub.stop)
    later = {check.check: check for check in examine(hub.folder, now() + timedelta(days=200))}
    assert later["hub"].state == "warn"
    assert (later["revocation list"].state, "start the hub" in later["revocation list"].fix) == ("fail", True)
    assert any(check.state == "fail" and "timestamp" in check.check for check in later.values())
    (hub.folder / "ca" / "ca.key").unlink()
    broken = examine(hub.folder, now())
    assert any(check.state == "fail" and "ca.key" in check.fact for check in broken)
