"""A site under faults: a clock at 1970, a full disk, the same order twice, rubbish at its doors.

Each time the last good version goes on serving, and the site says what is wrong.
"""

import asyncio
import json
import shutil
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from landreeve.wire.codec import decode
from landreeve.wire.messages import Event, Fact, UpdateReport
from landreeve_agent.update.pointer import read_pointers

from tests.agent.onnx_models import body
from tests.fakes.update_ports import FakeFetcher
from tests.integration.test_agent_process import Site, wait_for, with_release
from tests.integration.test_update_trust import A, B, Box, Fleet

MIB = 1024 * 1024
# Read by every Python of the site before anything else: supervisor, worker and preflight child start in 1970.
CLOCK_AT_1970 = """
import datetime
import time_machine
time_machine.travel(datetime.datetime(1970, 1, 1, 0, 5, tzinfo=datetime.UTC), tick=True).start()
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "state")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of that many MiB."""
    mounted: list[Path] = []

    def mount(mib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that takes what is free but ``leave`` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        file.write(b"\0" * max(0, free(disk) - leave))
        while not leave:
            try:
                file.write(b"\0" * 4096)
            except OSError:
                break
    return ballast


def free(disk: Path) -> int:
    return shutil.disk_usage(disk).free


# Orders -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def living(root: Path, fleet: Fleet) -> AsyncIterator[Box]:
    """A box behind the hub's real signing, its update runner going."""
    box = Box(root, fleet)
    await box.runner.recover()
    running = asyncio.create_task(box.runner.run())
    try:
        yield box
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        box.database.close()


async def told(box: Box) -> list[object]:
    """Everything that waits for a hub, which these boxes have none of."""
    query = "SELECT body FROM outbox ORDER BY seq"
    rows = await box.database.read(lambda db: db.conn.execute(query).fetchall())
    return [decode(body, Fact).body for (body,) in rows]


async def reports(box: Box) -> list[UpdateReport]:
    return [body for body in await told(box) if isinstance(body, UpdateReport)]


async def refusals(box: Box) -> list[Event]:
    return [body for body in await told(box) if isinstance(body, Event) and body.name == "update.refused"]


async def until_reported(box: Box, state: str) -> UpdateReport:
    async with asyncio.timeout(20):
        while True:
            found = [report for report in await reports(box) if report.state == state]
            if found:
                return found[-1]
            await asyncio.sleep(0.01)


def serving(box: Box, root: Path) -> tuple[str, str]:
    """The version the pointer names and the one the worker answers with."""
    (route,) = box.worker.routes
    return read_pointers(root / "models")["demo"].version, route.active.version


async def test_the_same_signed_order_twice_changes_nothing(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "hub")
    async with living(tmp_path, fleet) as box:
        order = fleet.order(1, A, "A")
        await box.runner.on_desired(order)
        await box.until_committed("A")
        before, told = await reports(box), await box.outbox.size()
        await box.runner.on_desired(order)
        await box.runner.on_desired(fleet.order(1, A, "A"))
        await asyncio.sleep(0.1)
        assert await reports(box) == before
        assert await box.outbox.size() == told
        assert serving(box, tmp_path) == ("A", "A")


async def test_a_clock_at_1970_installs_nothing_says_why_and_goes_on_with_what_serves(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path / "hub")
    async with living(tmp_path, fleet) as box:
        await box.runner.on_desired(fleet.order(1, A, "A"))
        await box.until_committed("A")
        right = box.now
        box.now = datetime(1970, 1, 1, 0, 5, tzinfo=UTC)
        await box.runner.on_desired(fleet.order(2, B, "B"))
        (refused,) = await refusals(box)
        assert "clock" in refused.cause
        assert "1970" in refused.sentence
        assert serving(box, tmp_path) == ("A", "A")
        # Set right, the same document is good.
        box.now = right
        await box.runner.on_desired(fleet.order(2, B, "B"))
        await box.until_committed("B")


async def test_a_disk_too_full_for_a_release_is_said_before_the_first_block(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    fleet, disk = Fleet(tmp_path / "hub"), small_disk(100)
    async with living(disk, fleet) as box:
        await box.runner.on_desired(fleet.order(1, A, "A"))
        await box.until_committed("A")
        ballast = fill(disk, leave=20 * MIB)
        await box.runner.on_desired(fleet.order(2, B, "B"))
        refused = await until_reported(box, "REJECTED")
        assert (refused.version, refused.cause) == ("B", "disk_full")
        assert "MiB are free; make room and order it again" in refused.sentence
        assert serving(box, disk) == ("A", "A")
        ballast.unlink()
        await box.runner.on_desired(fleet.order(3, B, "B"))
        await box.until_committed("B")


async def test_a_disk_that_fills_up_half_way_leaves_the_last_good_version_and_the_update_goes_on_once_there_is_room(
    tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, blobs and models share the disk, so the journal of the failure cannot be written either."""
    fleet, disk = Fleet(tmp_path / "hub"), small_disk(100)
    monkeypatch.setattr("tests.integration.test_update_trust.FakeFetcher", FillingFetcher)
    async with living(disk, fleet) as box:
        await box.runner.on_desired(fleet.order(1, A, "A"))
        await box.until_committed("A")
        FillingFetcher.disk = disk
        await box.runner.on_desired(fleet.order(2, B, "B"))
        async with asyncio.timeout(20):
            await FillingFetcher.filled.wait()
        await asyncio.sleep(0.3)
        assert serving(box, disk) == ("A", "A")
        (disk / "ballast").unlink()
        # Nothing said that it had failed, since nothing could be written: it is tried again until it can be.
        await box.until_committed("B")
        assert serving(box, disk) == ("B", "B")


class FillingFetcher(FakeFetcher):
    """The disk is full once the first block has arrived."""

    disk: Path | None = None
    filled = asyncio.Event()

    async def fetch(self, *what: Any, **more: Any) -> Path:
        if FillingFetcher.disk is not None:
            fill(FillingFetcher.disk)
            FillingFetcher.disk = None
            FillingFetcher.filled.set()
        return await super().fetch(*what, **more)


# The whole site -----------------------------------------------------------------------------------------------


def test_a_site_whose_clock_says_1970_serves_and_keeps_what_it_answers(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(CLOCK_AT_1970)
    site.init()
    with_release(site.state)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "early"))
    site.start()
    assert site.infer("a")["id"] == "a"
    status = wait_for(lambda: (s := site.status())["predictions_total"] == 1 and s, site)
    assert status["time"].startswith("1970-01-01")
    assert status["models"][0]["version"] == "1.0.0"


def test_a_site_whose_disk_is_full_says_so_and_works_again_once_there_is_room(
    tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(60)
    site = Site(disk / "state")
    site.log = tmp_path / "agent.log"
    try:
        site.init()
        with_release(site.state)
        site.start()
        assert site.infer("before")["id"] == "before"
        wait_for(lambda: site.status()["predictions_total"] == 1, site)
        ballast = fill(disk)
        # More rows than fit into what the spool's last block has left.
        answers = [ask(site, f"full-{n}") for n in range(40)]
        assert {status for status, _ in answers} == {200}
        verdict = wait_for(lambda: (v := site.status()["verdict"])["level"] == "error" and v, site)
        assert "disk" in verdict["sentence"]
        ballast.unlink()
        assert site.infer("after")["id"] == "after"
        wait_for(lambda: "after" in kept(site), site)
        assert kept(site) >= {"before", "after"}
        # What could not be kept stays said, since nobody can bring it back.
        wait_for(lambda: "their rows could not be kept" in site.status()["verdict"]["sentence"], site)
        assert site.end() == 0
    finally:
        if site.process is not None and site.process.poll() is None:
            site.kill()


def ask(site: Site, name: str = "full") -> Any:
    document = json.dumps(body(id=name)).encode()
    url = f"http://127.0.0.1:{site.ports()['serving']}/v2/models/delay/infer"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, document), timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def kept(site: Site) -> set[str]:
    with sqlite3.connect(f"file:{site.state}/agent.db?mode=ro", uri=True) as db:
        found = {row[0] for row in db.execute("SELECT id FROM samples")}
    db.close()
    return found


# Rubbish at the doors -----------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000
INFER, INTAKE, LABELS = "/v2/models/delay/infer", "/api/v1/models/delay/samples", "/api/v1/models/delay/labels"


def tensors(**changes: Any) -> str:
    """A request whose tensor ``hour`` is changed."""
    document: dict[str, Any] = body()
    document["inputs"][0] |= changes
    return json.dumps(document)


def sample(**changes: Any) -> str:
    row = {"hour": 9.5, "wind": 4.0, "carrier": "UA"}
    return json.dumps({"samples": [{"id": "s", "at": "2026-01-01T00:00:00Z", "row": row} | changes]})


RUBBISH = [
    (INFER, "\x00\x01 rubbish", 400, "body: JSON is malformed"),
    (INFER, '{"inputs":' + DEEP + "}", 400, "inputs"),
    (INFER, '{"x":' + DEEP + "}", 400, "body: nested too deeply"),
    (INFER, tensors(data=["nine"]), 400, "hour"),
    (INFER, tensors(shape=[-1]), 400, "shape"),
    (INFER, tensors(shape=[2**62]), 413, "rows"),
    (INFER, tensors(datatype="FLOAT128"), 400, "FLOAT128"),
    (INFER, tensors(name="hours"), 400, "hours"),
    (INFER, tensors(data=[10**400]), 400, "hour"),
    (INFER, json.dumps(body(id="x" * 5000)), 400, "id"),
    (INFER, json.dumps(body(parameters={"at": "yesterday"})), 400, "at"),
    (INFER, json.dumps(body(parameters={"at": "0001-01-01T00:00:00+14:00"})), 400, "at"),
    (INTAKE, "\x00", 422, "malformed"),
    (INTAKE, '{"samples":' + DEEP + "}", 422, "samples"),
    (INTAKE, '{"x":' + DEEP + "}", 422, "nested too deeply"),
    (INTAKE, sample(at="0001-01-01T00:00:00+14:00"), 422, "at"),
    (INTAKE, sample(row={"hour": 1e999}), 422, ""),
    (INTAKE, sample(id=""), 422, "id"),
    (INTAKE, sample(row={"hour": 9, "wind": 1, "carrier": {"a": []}}), 422, "row.carrier"),
    (INTAKE, '{"samples":[' + "1," * 17_000_000 + "1]}", 413, "above"),
    (LABELS, '{"labels":[{"id":"s","label":1e400,"at":"2026-01-01T00:00:00Z"}]}', 422, "label"),
    (LABELS, '{"labels":[{"id":"s","label":1}]}', 422, "at"),
]


def test_rubbish_at_the_doors_gets_an_error_that_names_the_field_and_nothing_stops(site: Site) -> None:
    site.init()
    with_release(site.state)
    site.start()
    ports, worker = site.ports(), site.status()["worker"]["pid"]
    token = (site.state / "tokens" / "app").read_text().strip()
    wrong = []
    for path, sent, status, words in RUBBISH:
        port = ports["serving"] if path == INFER else ports["console"]
        got, said = post(f"http://127.0.0.1:{port}{path}", sent, token)
        if got != status or words not in said:
            wrong.append((path, sent[:60], status, words, got, said[:200]))
    assert wrong == []
    assert site.infer("good")["id"] == "good"
    wait_for(lambda: kept(site) == {"good"}, site)
    assert (site.status()["worker"]["pid"], site.status()["worker"]["restarts"]) == (worker, 0)


def post(url: str, sent: str, token: str) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, sent.encode(), headers)  # noqa: S310 - our own loopback URL
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
