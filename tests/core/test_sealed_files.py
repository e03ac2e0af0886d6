"""Files of releases sealed where they lie: each is bound to its place, and a conversion may be killed at any moment."""

import os
from pathlib import Path

import pytest
from landreeve.blobs.files import PLAIN, Files, Opening
from landreeve.release.layout import read_config, read_folder, write_folder
from landreeve.release.manifest import BadReleaseError
from landreeve.sealed import state
from landreeve.sealed.files import SealedFiles
from landreeve.sealed.state import Parts
from landreeve.sealed.vault import Vault

from tests.core.test_release_layout import FILES, config, pack

MARK = b"canary-of-files"
KEY = {"00" * 8: bytes(32)}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("m/aaaa", "m/bbbb/inner", "other/aaaa"):
        (tmp_path / "state" / "models" / name).mkdir(parents=True)
    return tmp_path / "state" / "models"


def sealed(models: Path, keys: dict[str, bytes] | None = None) -> SealedFiles:
    return SealedFiles(models.parent, keys or KEY)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 1_000_003])
def test_any_length_comes_back_and_nothing_of_it_is_in_the_file(models: Path, size: int) -> None:
    files, path = sealed(models), models / "m/aaaa/model.onnx"
    data = (MARK * (size // len(MARK) + 1))[:size]
    files.write(path, data)
    assert files.read(path) == data
    assert files.size(path) == size
    assert files.part(path, 3, 70_000) == data[3:70_003]
    assert size < len(MARK) or MARK not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert [other.name for other in path.parent.iterdir()] == ["model.onnx"]


def test_a_file_put_in_anothers_place_is_not_believed(models: Path) -> None:
    files, mine, others = sealed(models), models / "m/aaaa/model.onnx", models / "m/bbbb/model.onnx"
    for path in (mine, others):
        files.write(path, str(path).encode())
    others.write_bytes(mine.read_bytes())
    with pytest.raises(OSError, match="sealed elsewhere, or altered"):
        files.read(others)
    files.move(mine, models / "m/bbbb/moved")  # by its name it is sealed anew
    assert files.read(models / "m/bbbb/moved") == str(mine).encode()
    assert not mine.exists()


@pytest.mark.parametrize("at", [0, 20, 60, -1])
def test_an_altered_byte_is_never_handed_to_a_runtime(models: Path, at: int) -> None:
    files, path = sealed(models), models / "m/aaaa/model.onnx"
    files.write(path, MARK)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    if at == 0:  # no file of ours any more: then whatever reads it sees no graph, and no secret
        assert MARK not in files.read(path)
        return
    with pytest.raises(OSError, match="sealed elsewhere, or altered"):
        files.read(path)


def test_a_moved_state_folder_opens_and_another_key_does_not(models: Path, tmp_path: Path) -> None:
    sealed(models).write(models / "m/aaaa/model.onnx", MARK)
    moved = models.parent.rename(tmp_path / "elsewhere") / "models"
    assert sealed(moved).read(moved / "m/aaaa/model.onnx") == MARK
    with pytest.raises(OSError, match="sealed elsewhere"):
        sealed(moved, {"11" * 8: bytes(32)}).read(moved / "m/aaaa/model.onnx")


def test_what_opens_them_goes_to_a_child_and_is_never_printed(models: Path) -> None:
    files = sealed(models)
    files.write(models / "m/aaaa/model.onnx", MARK)
    assert files.opening.files().read(models / "m/aaaa/model.onnx") == MARK
    assert Opening().files() is PLAIN
    assert bytes(32).hex() not in repr(files.opening)


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "sealed"])
def test_a_release_laid_out_in_either_way_is_the_same(models: Path, plain: bool) -> None:
    files: Files = PLAIN if plain else sealed(models)
    packed, folder = pack(FILES, config()), models / "m/cccc"
    write_folder(packed, folder, files)
    assert read_folder(folder, files) == packed
    assert read_config(folder, files).model == packed.config.model
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_folder(packed, folder, files)  # it is there: nothing is written
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    if not plain:
        with pytest.raises(BadReleaseError):
            read_folder(folder)


class Folder:
    """A state folder with files of releases."""

    def __init__(self, models: Path) -> None:
        self.parts = Parts(
            models.parent, models.parent / "agent.db", models=models, passing=(models.parent / "training",)
        )
        key = models.parent.parent / "kek"
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        self.vault, _ = Vault.create(self.parts.vault, f"file:{key}", models.parent)
        self.kept = [models / name for name in ("m/aaaa/model.onnx", "m/bbbb/inner/x.json", "other/aaaa/golden")]
        for path in self.kept:
            path.write_bytes(MARK + path.name.encode())
        (models / "m" / "active.json").write_bytes(b"{}")
        for left in ("m/.aaaa.x1", "m/aaaa/.tuning"):  # a kill left these
            (models / left).mkdir()
            (models / left / "model.onnx").write_bytes(MARK)
        (models.parent / "training" / "run").mkdir(parents=True)
        (models.parent / "training" / "run" / "rows-0000.jsonl").write_bytes(MARK)

    def hits(self) -> list[Path]:
        return [path for path in self.parts.root.rglob("*") if path.is_file() and MARK in path.read_bytes()]

    def read(self) -> list[bytes]:
        files = SealedFiles(self.parts.root, self.vault.keys("blobs"))
        return [files.read(path) for path in self.kept]


def test_sealed_rekeyed_and_unsealed_a_folder_keeps_its_files_and_no_remains(models: Path) -> None:
    pytest.importorskip("sqlcipher3")
    folder = Folder(models)
    before = [path.read_bytes() for path in folder.kept]
    tally = state.seal(folder.parts, folder.vault)
    assert (tally.files, tally.files_plain, tally.converted, tally.whole) == (3, 0, 3, True)
    assert folder.hits() == []
    assert (models / "m" / "active.json").read_bytes() == b"{}"  # which version serves is known without a key
    assert folder.read() == before
    folder.vault.add_key("blobs")
    assert state.status(folder.parts, folder.vault).files_older == 3
    assert folder.read() == before  # readable in between
    state.seal(folder.parts, folder.vault)
    folder.vault.drop_keys("blobs")
    assert folder.read() == before
    state.unseal(folder.parts, folder.vault)
    assert [path.read_bytes() for path in folder.kept] == before


def test_a_sealing_cut_short_after_any_file_goes_on(models: Path) -> None:
    folder = Folder(models)
    files, before = SealedFiles(models.parent, folder.vault.keys("blobs")), [p.read_bytes() for p in folder.kept]
    files.seal(folder.kept[1])
    folder.kept[0].with_name(".model.onnx.sealing").write_bytes(b"half")  # killed inside the next
    assert folder.read() == before
    assert state.status(folder.parts, folder.vault).files_plain == 2
    assert state.seal_files(folder.parts, folder.vault) == 2
    assert state.seal_files(folder.parts, folder.vault) == 0
    assert folder.read() == before
    assert not list(models.rglob(".*"))
