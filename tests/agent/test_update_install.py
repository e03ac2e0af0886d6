"""From an order to a folder on the box: releases of both forms, and none that must not be used."""

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack, read_folder
from landreeve.release.manifest import digest_of, encode_manifest
from landreeve_agent.link.transfer import FetchFailedError
from landreeve_agent.update.install import RESERVE_BYTES, Installer
from landreeve_agent.update.standing import Order

from tests.core.test_release_layout import as_of_old
from tests.fakes.graphs import field, graph_of
from tests.fakes.update_ports import FakeFetcher, Hub, Reaper, release, wanted

GOOD = release("A")


async def installed(tmp_path: Path, packed: Packed) -> Path:
    hub, blobs = Hub(), BlobStore(tmp_path / "blobs", margin_bytes=0)
    hub.add(packed)
    asked = wanted(packed, "v1", "r-1")
    size = asked.manifest_bytes
    order = Order(asked.model, asked.release, asked.version, size, asked.rollout, 1, size)
    installer = Installer(FakeFetcher(hub, blobs, Reaper()), blobs, tmp_path / "models", "0.1.0")
    return await installer.install(order, lambda *_: None)


@pytest.mark.parametrize("packed", [GOOD, as_of_old(GOOD)], ids=["of today", "from before landreeve.json"])
async def test_releases_of_both_forms_are_laid_out(tmp_path: Path, packed: Packed) -> None:
    folder = await installed(tmp_path, packed)
    assert read_folder(folder) == packed


class Cut(Exception):  # noqa: N818 - it stands for a kill
    """The agent ended here."""


class Halfway(FakeFetcher):
    """Takes the room of the first large file, then ends as a kill does."""

    async def fetch(self, digest: str, size: int, *rest: Any, **more: Any) -> Path:
        if size < 1024 * 1024:
            return await super().fetch(digest, size, *rest, **more)
        self.blobs.begin(digest, size, rest[0])
        raise Cut


@pytest.mark.parametrize("left_off", ["inside a file", "while it was laid out", "before it was said"])
async def test_release_that_had_its_room_is_not_refused_for_the_room_it_took(tmp_path: Path, left_off: str) -> None:
    packed = pack({"model.onnx": graph_of(b"x" * 8 * 1024 * 1024), "card.md": b"# x"}, GOOD.config)
    hub, blobs = Hub(), BlobStore(tmp_path / "blobs", margin_bytes=0)
    hub.add(packed)
    whole = sum(layer.size for layer in packed.manifest.layers)
    disk = 2 * whole + RESERVE_BYTES + 1024 * 1024
    blobs.free_bytes = lambda: disk - sum(f.stat().st_blocks * 512 for f in tmp_path.rglob("*") if f.is_file())  # type: ignore[method-assign]
    asked = wanted(packed, "v1", "r-1")
    order = Order(asked.model, asked.release, asked.version, asked.manifest_bytes, asked.rollout, 1, 1)

    def installer(kind: type[FakeFetcher]) -> Installer:
        return Installer(kind(hub, blobs, Reaper()), blobs, tmp_path / "models", "0.1.0")

    if left_off == "inside a file":
        with pytest.raises(Cut):
            await installer(Halfway).install(order, lambda *_: None)
    else:
        laid_out = await installer(FakeFetcher).install(order, lambda *_: None)
        if left_off == "while it was laid out":
            laid_out.rename(laid_out.with_name(f".{laid_out.name}.left"))
    folder = await installer(FakeFetcher).install(order, lambda *_: None)
    assert read_folder(folder) == packed


class Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path(TRAP),))  # type: ignore[return-value]


TRAP = "ran-by-a-pickle"


def renamed(packed: Packed, path: str) -> Packed:
    forged = packed.manifest_bytes.replace(b'"card.md"', json.dumps(path).encode())
    return Packed(forged, digest_of(forged), packed.blobs)


def with_files(**files: bytes) -> Packed:
    kept = {layer.path: GOOD.file(layer.path) for layer in GOOD.manifest.layers}
    return pack(kept | {name.replace("_", "."): data for name, data in files.items()}, GOOD.config)


def archived(packed: Packed) -> Packed:
    manifest = packed.manifest
    layers = tuple(
        msgspec.structs.replace(layer, media_type="application/vnd.cncf.model.weight.v1.tar+gzip")
        for layer in manifest.layers
    )
    data = encode_manifest(msgspec.structs.replace(manifest, layers=layers))
    return Packed(data, digest_of(data), packed.blobs)


EXTERNAL = field(5, field(2, 1) + field(13, field(1, b"location")))
HOSTILE = {
    "pickle": (with_files(model_onnx=pickle.dumps(Trap())), "is a pickle"),
    "external tensor": (with_files(model_onnx=graph_of(nodes=EXTERNAL)), "lies outside the file"),
    "foreign operators": (with_files(model_onnx=graph_of(domain=b"com.evil")), "'com.evil' is not accepted"),
    "path trick": (renamed(GOOD, "../../card.md"), "leads out of the folder"),
    "absolute path": (renamed(GOOD, "/tmp/card.md"), "absolute"),
    "archived layers": (archived(GOOD), "is archived"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_signed_or_not_what_must_not_be_used_never_reaches_the_models_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    packed, reason = HOSTILE[name]
    with pytest.raises(FetchFailedError, match=reason) as refused:
        await installed(tmp_path / "box", packed)
    assert refused.value.cause == "bad_release"
    models = tmp_path / "box" / "models"
    assert [path for path in models.rglob("*") if path.is_file()] == []
    assert not (tmp_path / TRAP).exists()
