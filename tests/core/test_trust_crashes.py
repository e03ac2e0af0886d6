"""The trust folder when the process is killed, or the disk is full, at any moment of a verification."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from landreeve.trust.anchor import install
from landreeve.trust.cache import Caches
from landreeve.trust.document import DOCUMENT_NAME, document_text
from landreeve.wire.codec import encode
from landreeve.wire.messages import Desired, SignedDesired
from tuf.api.metadata import TargetFile

from tests.core.trust_child import NOW, sees
from tests.fakes.tuf_repository import TufRepository

REFUSED = ("downgrade", "bad_signature")  # older, or signed by a key that was replaced since


@pytest.fixture
def folder() -> Iterator[Path]:
    """A device that believed documents 0 and 1; document 2 brings new keys for every role."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        director, targets = TufRepository(NOW), TufRepository(NOW)
        roots = {"director": director.roots[0], "targets": targets.roots[0]}
        install(folder / "trust", roots, NOW - timedelta(days=3))
        for number in range(3):
            if number == 2:
                for one in (director, targets):
                    one.replace_keys("timestamp")
                    one.new_root()
            document = document_text(Desired(device="d-1", generation=number + 1, issued=NOW.isoformat(), models=()))
            listed = TargetFile.from_data(DOCUMENT_NAME, document.encode(), ["sha256"])
            director.targets.targets = {DOCUMENT_NAME: listed}
            files = {"director": director.publish(), "targets": targets.publish()}
            signed = SignedDesired(generation=number + 1, document=document, **files)
            (folder / f"{number}.json").write_bytes(encode(signed))
            if number < 2:
                assert sees(folder, number) == "believed"
        yield folder


def child(what: str, folder: Path) -> list[dict[str, Any]]:
    script = Path(__file__).with_name("trust_child.py")
    done = subprocess.run([sys.executable, script, what, folder], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_name_on_the_way_to_a_cache_is_on_the_disk_before_it_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory entry outlives a power cut only once its own folder was synced."""
    synced: list[Path] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        in_use = (tmp_path / "current").is_symlink()
        synced.extend([] if in_use else [Path(f"/proc/self/fd/{handle}").readlink()])
        fsync(handle)

    caches = Caches(tmp_path)
    work = caches.copy()
    monkeypatch.setattr(os, "fsync", noting)
    caches.adopt(work)
    assert {work, work / "director", work / "targets", work.parent} <= set(synced)


def test_kill_at_any_touch_leaves_the_former_state_or_the_new_one(folder: Path) -> None:
    tried = child("kill", folder)
    assert len(tried) > 20
    assert {one["code"] for one in tried[:-1]} == {-9}
    assert tried[-1]["code"] == 0
    for one in tried:
        oldest, _, new, then = one["after"]
        assert oldest in REFUSED
        assert new == "believed"
        assert then in REFUSED
    # The former document is believed until the new state, or a root of it, is in force; never again afterwards.
    seen = [one["after"][1] in REFUSED for one in tried]
    assert seen == sorted(seen)
    assert True in seen
    assert False in seen
    assert {one["left"] for one in tried} == {1}


def test_full_disk_refuses_and_loses_nothing(folder: Path) -> None:
    tried = child("full", folder)
    assert [one["code"] for one in tried] == [1] * (len(tried) - 1) + [0]
    for one in tried:
        assert one["after"][0] in REFUSED
        assert one["after"][2] == "believed"
        assert one["after"][3] in REFUSED
    assert {one["left"] for one in tried} == {1}
