"""SQLite files sealed by SQLCipher: opening, telling, and converting them so that a kill at any moment leaves one that
works. `sqlcipher3` is the extra ``sealed``; a plain file needs none of it."""

import contextlib
import os
import platform
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from landreeve.blobs.durable import sync_folder
from landreeve.sealed.errors import KeyMissingError, WrongKeyError

PLAIN_HEAD = b"SQLite format 3\0"
BESIDE = ".sealing"


class ConversionError(Exception):
    """The copy is not what the original is; nothing was changed."""


def module() -> ModuleType:
    """SQLCipher's DB-API; `KeyMissingError` when the extra is not installed."""
    try:
        from sqlcipher3 import dbapi2
    except ImportError as error:
        here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        raise KeyMissingError(
            f"a sealed store needs SQLCipher, and the package sqlcipher3 cannot be used here ({here}: {error}): "
            "pip install 'landreeve[sealed]'. It comes built for Python 3.11 to 3.14 on Linux x86-64 and arm64; "
            "elsewhere encrypt the file system instead (docs/at-rest.md)"
        ) from error
    return dbapi2  # type: ignore[no-any-return]


def is_plain(path: Path) -> bool:
    """Whether the file is an SQLite database in plain text."""
    try:
        with path.open("rb") as file:
            return file.read(len(PLAIN_HEAD)) == PLAIN_HEAD
    except FileNotFoundError:
        return False


def is_sealed(path: Path) -> bool:
    """Whether the file holds something that is no plain database."""
    return path.exists() and path.stat().st_size > 0 and not is_plain(path)


def key_for(path: Path, keys: Iterable[bytes]) -> bytes | None:
    """The key to open the file with: None for a plain one, the newest for a new one, else the one that opens it.

    ``keys`` are oldest first. `KeyMissingError` without any for a sealed file, `WrongKeyError` when none opens it.
    """
    known = list(keys)
    if is_plain(path):
        return None  # also with keys: a conversion that was cut short goes on where it was
    if not is_sealed(path):
        return known[-1] if known else None
    if not known:
        raise KeyMissingError(f"{path} is sealed (or no database) and no key is set: say with at_rest.key where it is")
    for key in reversed(known):
        if opens(path, key):
            return key
    raise WrongKeyError(f"{path}: none of the vault's keys opens it; was it put back from another state folder?")


def opens(path: Path, key: bytes | None) -> bool:
    """Whether the key opens the file."""
    connection = connect(path, key, timeout=30.0)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.DatabaseError, module().DatabaseError):
        return False
    finally:
        connection.close()
    return True


def connect(path: Path, key: bytes | None, **options: Any) -> Any:
    """A connection; with a key it is SQLCipher's, unlocked."""
    if key is None:
        return sqlite3.connect(path, **options)
    connection = module().connect(str(path), **options)
    unlock(connection, key)
    return connection


def unlock(connection: Any, key: bytes) -> None:
    """Give a fresh SQLCipher connection its key; large sorts stay in memory, since their files would be plain."""
    for pragma in (f"key = {spelled(key)}", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}").close()


def spelled(key: bytes | None) -> str:
    """The key as an SQL literal: raw, so that no time goes into deriving one; empty for a plain file."""
    return "''" if key is None else f"\"x'{key.hex()}'\""


def convert(path: Path, old: bytes | None, new: bytes | None) -> None:
    """Rewrite the file from one key to another (None: plain text), in one rename. Nobody else may have it open."""
    drop_unfinished(path)
    beside = path.with_name(path.name + BESIDE)
    connection = _exclusive(path, old)
    _make_empty(beside, path.stat().st_mode)
    try:
        connection.execute(f"ATTACH DATABASE ? AS made KEY {spelled(new)}", (str(beside),))
        connection.execute("SELECT sqlcipher_export('made')").fetchall()
        for name in ("user_version", "application_id"):
            value = connection.execute(f"PRAGMA main.{name}").fetchone()[0]
            connection.execute(f"PRAGMA made.{name} = {int(value)}")
        connection.commit()
        connection.execute("DETACH DATABASE made")
        before = _census(connection)
    finally:
        connection.close()
    try:
        _compare(beside, new, before)
    except BaseException:
        _clear(beside)
        raise
    _sync(beside)
    beside.replace(path)
    sync_folder(path.parent)


def drop_unfinished(path: Path) -> None:
    """Remove what a killed conversion of the file left beside it: after an unsealing it is in plain text."""
    _clear(path.with_name(path.name + BESIDE))


def _exclusive(path: Path, key: bytes | None) -> Any:
    """A connection whose write-ahead log is folded in and gone: one left beside would not fit the new file."""
    connection = module().connect(str(path), timeout=2.0, isolation_level=None)
    if key is not None:
        unlock(connection, key)
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        mode = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
    except module().OperationalError as error:
        mode = str(error)
    if mode != "delete":
        connection.close()
        raise ConversionError(f"{path} is in use ({mode}): stop the program that has it open")
    return connection


def _make_empty(path: Path, mode: int) -> None:
    """The file as readable as the one it will replace, from its first byte on."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.fchmod(handle, stat.S_IMODE(mode))
    finally:
        os.close(handle)


def _census(connection: Any) -> dict[str, int]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in rows}  # noqa: S608


def _compare(path: Path, key: bytes | None, before: dict[str, int]) -> None:
    connection = connect(path, key)
    try:
        verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
        after = _census(connection)
    finally:
        connection.close()
    if verdict != "ok" or after != before:
        raise ConversionError(f"the copy of {path.name} is not the original ({verdict}); nothing was changed")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear(beside: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            beside.with_name(beside.name + suffix).unlink()
