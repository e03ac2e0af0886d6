"""What stands in the repository was written by somebody: nothing that a program left behind while it ran."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Bytes that are meant: pictures, fonts, packed data, graphs and a compiled description of messages.
BINARY = {".png", ".woff2", ".gz", ".onnx", ".binpb"}
STATE = {".db", ".db-wal", ".db-shm", ".sqlite", ".sqlite3", ".log", ".pid", ".sock", ".pyc", ".key", ".crt", ".pem"}
TOP = {
    ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "NOTICE", "README.md", "SECURITY.md",
    "constraints.txt", "pyproject.toml",
}  # fmt: skip


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    asked = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip("no checkout: a released source has no list of what is tracked")
    return [ROOT / name for name in asked.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_state_is_tracked(tracked: list[Path]) -> None:
    assert [str(path.relative_to(ROOT)) for path in tracked if path.suffix in STATE] == []


def test_only_known_kinds_of_files_are_binary(tracked: list[Path]) -> None:
    plain = [path for path in tracked if path.suffix not in BINARY]
    assert len(plain) > 500
    assert [str(path.relative_to(ROOT)) for path in plain if b"\0" in path.read_bytes()] == []


def test_the_root_holds_what_a_reader_expects_there(tracked: list[Path]) -> None:
    assert {path.name for path in tracked if path.parent == ROOT} <= TOP
