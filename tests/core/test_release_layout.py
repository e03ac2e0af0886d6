"""A release between files, folder and blobs: whole or refused, never half."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.layout import Packed, materialise, pack, read_config, read_folder, write_folder
from landreeve.release.manifest import (
    BadReleaseError,
    Column,
    Gates,
    Lineage,
    ReleaseConfig,
    Signature,
    block_digests,
    digest_of,
    encode_manifest,
)
from landreeve.release.vet import vet
from landreeve.wire.codec import BLOCK_BYTES

from tests.fakes.graphs import graph_of

FILES = {
    "model.onnx": graph_of(b"graph" * 40_000),
    "features.json": b"{}",
    "card.md": b"# card\n",
    "deep/er.json": b"[]",
}


def config() -> ReleaseConfig:
    signature = Signature(inputs=(Column(name="a", kind="number"),), output="p", width=1)
    return ReleaseConfig(
        model="m",
        family="boosting",
        created="2026-01-01T00:00:00Z",
        signature=signature,
        gates=Gates(),
        lineage=Lineage(),
    )


class Blobs(dict[str, bytes]):
    def read(self, digest: str) -> bytes:
        return self[digest]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_files_give_the_same_digest_and_any_change_another() -> None:
    assert pack(FILES, config()) == pack(dict(reversed(FILES.items())), config())
    assert pack(FILES, config()).digest != pack(FILES | {"card.md": b"# other\n"}, config()).digest


def test_folder_gives_back_the_very_release(tmp_path: Path) -> None:
    packed = pack(FILES, config())
    write_folder(packed, tmp_path / "r")
    assert read_folder(tmp_path / "r") == packed
    assert read_folder(tmp_path / "r").file("model.onnx") == FILES["model.onnx"]
    assert read_folder(tmp_path / "r").config.model == "m"


def test_every_block_of_every_layer_has_its_digest() -> None:
    packed = pack(FILES, config())
    digest = digest_of(FILES["model.onnx"])
    assert packed.config.blocks[digest] == block_digests(FILES["model.onnx"], BLOCK_BYTES)
    assert set(packed.config.blocks) == {digest_of(data) for data in FILES.values()}


@pytest.mark.parametrize("path", [*FILES, "config.json", "manifest.json"])
def test_one_changed_byte_anywhere_is_noticed(tmp_path: Path, path: str) -> None:
    write_folder(pack(FILES, config()), tmp_path / "r")
    file = tmp_path / "r" / path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    if path == "manifest.json":
        # Its own digest names the release: another manifest is another release, or none.
        with contextlib.suppress(BadReleaseError):
            assert read_folder(tmp_path / "r").digest != pack(FILES, config()).digest
    else:
        with pytest.raises(BadReleaseError, match=re.escape(path)):
            read_folder(tmp_path / "r")


def test_missing_file_is_named(tmp_path: Path) -> None:
    write_folder(pack(FILES, config()), tmp_path / "r")
    (tmp_path / "r" / "card.md").unlink()
    with pytest.raises(BadReleaseError, match=r"card\.md cannot be read"):
        read_folder(tmp_path / "r")


@pytest.mark.parametrize(
    "path", ["../x.json", "/etc/x.json", "a\\b.json", "weights.pkl", "config.json", "manifest.json", ""]
)
def test_paths_that_could_do_harm_are_refused(path: str) -> None:
    with pytest.raises(BadReleaseError):
        pack({path: b"x"}, config())


def test_manifest_that_names_a_reserved_file_never_reaches_the_disk(tmp_path: Path) -> None:
    packed = pack(FILES, config())
    hostile = encode_manifest(packed.manifest).replace(b"features.json", b"manifest.json")
    with pytest.raises(BadReleaseError, match="belongs to the release"):
        materialise(hostile, Blobs(packed.blobs), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_wrong_blob_leaves_no_folder_and_no_rest(tmp_path: Path) -> None:
    packed = pack(FILES, config())
    blobs = Blobs(packed.blobs) | {digest_of(b"{}"): b"[]"}
    with pytest.raises(BadReleaseError, match=r"features\.json"):
        materialise(packed.manifest_bytes, Blobs(blobs), tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_materialise_repairs_a_damaged_folder_and_keeps_a_good_one(tmp_path: Path) -> None:
    packed = pack(FILES, config())
    folder = tmp_path / "r"
    materialise(packed.manifest_bytes, Blobs(packed.blobs), folder)
    inode = folder.stat().st_ino
    materialise(packed.manifest_bytes, Blobs({}), folder)
    assert folder.stat().st_ino == inode
    (folder / "card.md").write_bytes(b"damaged")
    materialise(packed.manifest_bytes, Blobs(packed.blobs), folder)
    assert read_folder(folder) == packed


def test_killed_materialise_leaves_nothing_that_looks_like_a_release(tmp_path: Path) -> None:
    packed = pack(FILES, config())
    write_folder(packed, tmp_path / "source")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from landreeve.release import layout\n"
        "packed = layout.read_folder(Path(sys.argv[1]))\n"
        "class Dying:\n"
        "    left = 3\n"
        "    def read(self, digest):\n"
        "        self.left -= 1\n"
        "        if not self.left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return packed.blobs[digest]\n"
        "layout.materialise(packed.manifest_bytes, Dying(), Path(sys.argv[2]))\n"
    )
    target = tmp_path / "target"
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "source"), str(target)], check=False)
    assert ended.returncode == -9
    assert not target.exists()
    materialise(packed.manifest_bytes, Blobs(packed.blobs), target)
    assert tree(target) == tree(tmp_path / "source")


@given(st.binary(max_size=300))
def test_any_bytes_as_manifest_are_refused_with_a_reason(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("r")
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BadReleaseError):
        read_folder(folder)


def test_release_without_files_is_none() -> None:
    with pytest.raises(BadReleaseError, match="no file"):
        pack({}, config())
    packed = pack(FILES, config())
    with pytest.raises(BadReleaseError, match=r"no file 'x\.json'"):
        Packed(packed.manifest_bytes, packed.digest, packed.blobs).file("x.json")


# --- ModelPack, as https://github.com/modelpack/model-spec has it ---

MEMBERS = {
    "descriptor": {
        "createdAt", "authors", "family", "name", "docURL", "sourceURL", "datasetsURL", "version", "revision",
        "vendor", "licenses", "title", "description",
    },
    "config": {"architecture", "format", "paramSize", "precision", "quantization", "capabilities"},
    "modelfs": {"type", "diffIds"},
}  # fmt: skip


def test_config_and_manifest_are_those_of_modelpack() -> None:
    packed = pack(FILES, config())
    manifest = json.loads(packed.manifest_bytes)
    document = json.loads(packed.blobs[packed.manifest.config.sha256])
    assert document.keys() == MEMBERS.keys()  # its schema allows no other, here and within
    assert all(document[name].keys() <= MEMBERS[name] for name in MEMBERS)
    assert document["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    for layer in manifest["layers"]:
        assert re.fullmatch(
            r"application/vnd\.cncf\.model\.(weight|weight\.config|doc|dataset)\.v1\.raw", layer["mediaType"]
        )
        names = {layer["annotations"][key] for key in ("org.cncf.model.filepath", "org.opencontainers.image.title")}
        assert len(names) == 1


def as_of_old(packed: Packed) -> Packed:
    """The same release in the form of before ``landreeve.json``: what we add is a member of the config."""
    manifest, settings = packed.manifest, packed.manifest.settings
    layers = tuple(layer for layer in manifest.layers if layer != settings)
    document = json.loads(packed.blobs[manifest.config.sha256]) | json.loads(packed.blobs[settings.sha256])
    data = json.dumps(document).encode()
    described = msgspec.structs.replace(manifest.config, digest=f"sha256:{digest_of(data)}", size=len(data))
    blobs = {d: b for d, b in packed.blobs.items() if d not in {settings.sha256, manifest.config.sha256}}
    old = encode_manifest(msgspec.structs.replace(manifest, layers=layers, config=described))
    return Packed(old, digest_of(old), blobs | {digest_of(data): data})


def test_release_from_before_the_settings_layer_is_read_as_ever(tmp_path: Path) -> None:
    packed = pack(FILES, config())
    old = as_of_old(packed)
    write_folder(old, tmp_path / "r")
    assert not (tmp_path / "r" / "landreeve.json").exists()
    assert read_folder(tmp_path / "r") == old
    assert old.config == packed.config == read_config(tmp_path / "r")


def test_large_settings_in_an_old_config_are_read_wherever_they_are_accepted(tmp_path: Path) -> None:
    old = as_of_old(pack(FILES, msgspec.structs.replace(config(), hardware={"note": "n" * 400_000})))
    assert vet(old.manifest_bytes, old.blobs.__getitem__).config.hardware
    write_folder(old, tmp_path / "r")
    assert read_folder(tmp_path / "r") == old
