"""The canary: marked data goes in through every door of a running site and hub, then every byte of the state folder is
searched. Sealed, nothing may be found; in plain text the same search finds it, so that the test can fail."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import onnx
import pytest
from landreeve.blobs.files import PLAIN, Files
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import materialise
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.files import SealedFiles
from landreeve.sealed.vault import Vault
from landreeve_agent.link.outbox import Outbox
from landreeve_agent.sealing import MEMORY
from landreeve_agent.training.manager import Trainings
from landreeve_agent.tuning.cache import read_kept
from landreeve_agent.tuning.preflight import Preflight
from landreeve_agent.tuning.report import PreflightReport
from landreeve_models.definition import encode_definition, load_definition
from safetensors.numpy import load_file, save_file

from tests.agent.onnx_models import write_release
from tests.integration.test_agent_process import Site, wait_for, with_release
from tests.integration.test_hub_process import Running
from tests.integration.test_trainer_manager import DEFINITION as TOY
from tests.integration.test_trainer_manager import NOW
from tests.integration.test_trainer_manager import Site as Training

pytest.importorskip("sqlcipher3")
MARK = b"canary7f3a"
SECRET = MARK.decode()
# What stays plain, and why: docs/at-rest.md. People edit definitions and settings, the command line reads its token;
# each is 0600 or lies in a folder of 0700.
PLAIN_AGENT = ("definitions/", "agent.toml", "run/settings.json", "tokens/")
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


def marked(graph: bytes) -> bytes:
    """The same graph with the mark in its metadata, in the names of its nodes and weights, and in a weight."""
    model = onnx.load_model_from_string(graph)
    model.doc_string = SECRET
    names = {tensor.name: f"{SECRET}.{tensor.name}" for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for number, node in enumerate(model.graph.node):
        node.name = f"{SECRET}.node.{number}"
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    weight = onnx.numpy_helper.from_array(np.frombuffer(MARK + b"..", np.float32), f"{SECRET}.unused")
    model.graph.initializer.append(weight)
    return bytes(model.SerializeToString())


def marked_release(state: Path) -> Path:
    """A release from before the site was sealed: plain, and marked wherever a file can be."""
    with_release(state)
    (folder,) = (state / "models" / "delay").glob("[!.]*/")
    mark_files(folder)
    (folder / ".tuning").mkdir()  # as if a tuner had been killed
    (folder / ".tuning" / "model.qdq.onnx").write_bytes((folder / "model.onnx").read_bytes())
    return folder


def mark_files(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(marked((folder / "model.onnx").read_bytes()))
    definition = msgspec.structs.replace(load_definition(folder), purpose=SECRET)
    (folder / "definition.json").write_bytes(encode_definition(definition))
    for name in ("golden.safetensors", "calibration.safetensors"):
        save_file(load_file(folder / name) | {SECRET: np.frombuffer(MARK, np.uint8)}, folder / name)


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
    marked_release(site.state)
    site.start()
    through_every_door(site)
    site.kill()  # whatever is on the disk at this moment, write-ahead log and spool included
    hits = found(site.state, PLAIN_AGENT)
    if not sealed:
        kinds = {name.split("/")[0].split("-")[0] for name in hits}
        assert {"agent.db", "blobs", "spool", "models"} <= kinds
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


class Watching:
    """Reads every byte below a folder again and again: what a kill at some moment would leave there."""

    def __init__(self, root: Path) -> None:
        self.seen: set[str] = set()
        self.looks = 0
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watching":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            last = self._over.is_set()
            for folder, _, names in os.walk(self._root):  # what is gone meanwhile is left out
                for path in [Path(folder, name) for name in names]:
                    with contextlib.suppress(OSError):
                        if MARK in path.read_bytes():
                            self.seen.add(str(path.relative_to(self._root)))
            self.looks += 1
            if last:
                return


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, which quantisers use too."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def raw() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=MEMORY, prefix="landreeve-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
async def test_no_plan_that_is_made_and_tried_lies_plain_for_a_moment(tmp_path: Path, raw: Path, sealed: bool) -> None:
    folder = write_release(tmp_path / "models" / "delay" / "abc")
    mark_files(folder)
    files = SealedFiles(tmp_path, {"00" * 8: os.urandom(32)})
    if sealed:
        for path in folder.iterdir():
            files.seal(path)
    preflight = Preflight(0.3, exhaustive=True, files=files if sealed else PLAIN, raw=raw if sealed else None)
    with Watching(tmp_path) as watching:
        report = await preflight.run(folder, threads=2, deadline_s=120)
    assert isinstance(report, PreflightReport), report
    made = {trial.plan.recipe for trial in report.trials if trial.stage not in ("left out", "made")}
    assert {"qdq", "dynamic", "nncf", "stock-qdq"} <= made, report.text()
    assert watching.looks > 5
    if sealed:
        assert watching.seen == set()
    else:
        assert any(".tuning" in name for name in watching.seen)
    assert os.listdir(raw) == []  # noqa: PTH208
    kept = read_kept(folder, files)  # and the next preflight takes it again
    assert kept is not None
    again = await preflight.run(folder, threads=2, deadline_s=120)
    assert isinstance(again, PreflightReport)
    assert again.source == "cache"


@pytest.mark.slow
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "plain"])
async def test_no_row_and_no_challenger_of_a_training_lies_plain_for_a_moment(
    tmp_path: Path, raw: Path, sealed: bool
) -> None:
    (tmp_path / "store").mkdir()
    plain = Training(tmp_path / "store", msgspec.structs.replace(TOY, purpose=SECRET))
    await plain.fill(signal_strength=2.0, side=SECRET)
    root, keys = tmp_path / "state", {"00" * 8: os.urandom(32)}
    files: Files = SealedFiles(root, keys) if sealed else PLAIN
    blobs = BlobStore(root / "blobs", 0, SealedCodec(keys) if sealed else None)
    trainings = Trainings(
        plain.database, Outbox(plain.database), {"toy": plain.definition}, blobs, folder=root / "training",
        models=root / "models", site="north", clock=lambda: NOW, files=files, raw=raw if sealed else None,
    )  # fmt: skip
    plain.trainings = trainings
    await plain.ask("q")
    with Watching(root) as watching, Watching(tmp_path / "tmp") as temporary:
        assert await trainings.step()
    assert temporary.seen == set()
    (candidate,) = await plain.candidates()
    folder = root / "models" / "toy" / candidate.manifest[:12]
    materialise(blobs.read(candidate.manifest), blobs, folder, files)
    assert load_definition(folder, files).purpose == SECRET
    hits = {name.split("/")[0] for name in watching.seen} | {n.split("/")[0] for n in found(root, ())}
    assert hits == (set() if sealed else {"training", "blobs", "models"})
    assert os.listdir(raw) == []  # noqa: PTH208
    plain.database.close()


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
    left = state / "run" / "work" / "tmp1"  # as if a hub had been killed while it took a release in
    left.mkdir(parents=True)
    (left / "upload.tar").write_bytes(MARK)
    hub = Running(state, "http.port=0", "https.port=0", "broker.port=0").up()
    try:
        assert not left.exists()
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
