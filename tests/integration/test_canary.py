"""The canary: marked data goes in through every door of a running site and hub, then every byte of the state folder is
searched. Sealed, nothing may be found; in plain text the same search finds it, so that the test can fail."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.vault import Vault

from tests.integration.test_agent_process import Site, wait_for, with_release
from tests.integration.test_hub_process import Running

pytest.importorskip("sqlcipher3")
MARK = b"canary7f3a"
SECRET = MARK.decode()
# What stays plain, and why: docs/at-rest.md. Runtimes open model files by name, people edit settings, the command line
# reads its token; each is 0600 or lies in a folder of 0700.
PLAIN_AGENT = ("models/", "definitions/", "agent.toml", "run/settings.json", "tokens/")
PLAIN_HUB = ("hub.toml", "run/")


def found(root: Path, plain: tuple[str, ...]) -> list[str]:
    """Files with the mark in content or name, sorted; ``plain`` ones left out."""
    hits = []
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith(plain) and (MARK in path.read_bytes() or SECRET in name):
            hits.append(name)
    return sorted(hits)


def keyfile(folder: Path) -> str:
    path = folder / "kek"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return f"file:{path}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def through_every_door(site: Site) -> None:
    """Rows, labels, predictions, a definition, an audit entry, a refused sign-in; all under a mark."""
    columns = [{"name": f"x_{SECRET}", "kind": "number"}]
    site.call("POST", "/api/v1/models", {"name": SECRET, "purpose": SECRET, "label": "y", "columns": columns})
    samples = [{"id": f"{SECRET}-{n}", "at": "2026-01-01T00:00:00Z", "row": {f"x_{SECRET}": n}} for n in range(50)]
    site.call("POST", f"/api/v1/models/{SECRET}/samples", {"samples": samples})
    labels = [{"id": f"{SECRET}-{n}", "label": 1, "at": "2026-01-02T00:00:00Z"} for n in range(50)]
    site.call("POST", f"/api/v1/models/{SECRET}/labels", {"labels": labels})
    for number in range(20):
        site.infer(f"{SECRET}-prediction-{number}")


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
def test_nothing_that_came_in_can_be_read_from_a_sites_disk(site: Site, tmp_path: Path, sealed: bool) -> None:
    site.init("--set", f"site.name=Shop {SECRET}")
    source = keyfile(tmp_path)
    codec = None
    if sealed:
        done = site.cli("store", "encrypt", "--key", source)
        assert done.returncode == 0, done.stderr
        assert "Recovery key" in done.stderr
        codec = SealedCodec(Vault.open(site.state / "keys" / "vault.json", source, site.state).keys("blobs"))
    BlobStore(site.state / "blobs", 0, codec).put(MARK * 20_000)
    with_release(site.state)
    site.start()
    through_every_door(site)
    site.kill()  # whatever is on the disk at this moment, write-ahead log and spool included
    hits = found(site.state, PLAIN_AGENT)
    if not sealed:
        kinds = {name.split("/")[0].split("-")[0] for name in hits}
        assert {"agent.db", "blobs", "spool"} <= kinds
        return
    assert hits == []
    site.start()  # and nothing was lost by it
    wait_for(lambda: _rows(site.call("GET", "/api/v1/status")) == (50, 20), site)
    assert site.end() == 0
    assert found(site.state, PLAIN_AGENT) == []
    for secret in (tmp_path / "kek").read_bytes().hex(), source:
        assert secret not in site.log.read_text()
    moved = tmp_path / "kek"
    moved.rename(tmp_path / "elsewhere")
    without = site.cli("run")
    assert without.returncode != 0
    assert "put the key there or correct at_rest.key" in without.stderr


def _rows(status: dict[str, Any]) -> tuple[int, int]:
    counts = {model["name"]: model["samples"] for model in status["models"]}
    return counts.get(SECRET, 0), counts.get("delay", 0)


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
def test_nothing_that_came_in_can_be_read_from_the_hubs_disk(tmp_path: Path, sealed: bool) -> None:
    state, source = tmp_path / "hub", keyfile(tmp_path)
    ports = ("--set", "http.port=0", "--set", "https.port=0", "--set", "broker.port=0")

    def cli(*arguments: str) -> str:
        command = [sys.executable, "-m", "landreeve_hub", *arguments, "--state", str(state)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    cli("init", *ports)
    if sealed:
        cli("store", "encrypt", "--key", source)
    hub = Running(state, "http.port=0", "https.port=0", "broker.port=0").up()
    try:
        post(hub, "users", {"name": f"ann-{SECRET}", "role": "viewer", "password": f"long enough {SECRET}"})
        post(hub, "tokens", {"user": f"ann-{SECRET}", "name": SECRET, "scopes": ["view"]})
        post(hub, "enrolment-tokens", {"site": f"shop-{SECRET}", "labels": {"place": SECRET}})
    finally:
        hub.end(signal.SIGKILL)
    time.sleep(0.5)  # its broker goes with it
    hits = found(state, PLAIN_HUB)
    if sealed:
        assert hits == []
        assert json.loads(cli("store", "status", "-o", "json"))["database"] == "sealed"
    else:
        assert any(name.startswith("hub.db") for name in hits)


def post(hub: Running, path: str, body: dict[str, Any]) -> None:
    token = (hub.state / "run" / "admin-token").read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx2.post(f"{hub.ports()['url']}/api/v1/{path}", headers=headers, json=body, timeout=20)
    assert answer.status_code < 300, answer.text
