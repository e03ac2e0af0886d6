"""Keys and sealed state folders: what is missing or wrong is named, and a kill at any moment leaves one that works."""

import contextlib
import json
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from landreeve.blobs.codec import BlobWriter
from landreeve.blobs.durable import write_durably
from landreeve.blobs.store import BlobStore
from landreeve.cli import Format
from landreeve.sealed import sqlite, state
from landreeve.sealed.blobs import SealedCodec
from landreeve.sealed.commands import Place, encrypt
from landreeve.sealed.errors import BadVaultError, KeyMissingError, WrongKeyError
from landreeve.sealed.lines import LineSealer
from landreeve.sealed.state import Parts
from landreeve.sealed.vault import Vault, opened, read_key, spelled, unspelled

pytest.importorskip("sqlcipher3")
CANARY = "canary-7f3a91"


class Folder:
    """A state folder with a database, blobs, and a key outside of it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "state"
        self.root.mkdir()
        self.keyfile = root / "kek"
        self.keyfile.write_bytes(bytes(range(32)))
        self.keyfile.chmod(0o600)
        self.source = f"file:{self.keyfile}"
        self.parts = Parts(self.root, self.root / "agent.db", (self.root / "blobs",))

    def fill(self, rows: int = 200) -> None:
        connection = sqlite3.connect(self.parts.database)
        connection.executescript(
            "PRAGMA journal_mode=WAL; CREATE TABLE t (n INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT) STRICT;"
            "CREATE INDEX i ON t (a); CREATE TABLE w (k TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;"
            "CREATE TRIGGER g AFTER INSERT ON t BEGIN INSERT OR REPLACE INTO w VALUES (new.a); END;"
            "PRAGMA user_version=7"
        )
        connection.executemany("INSERT INTO t (a) VALUES (?)", [(f"{CANARY}-{n}-{'x' * 200}",) for n in range(rows)])
        connection.execute("DELETE FROM t WHERE n > 5 AND n < 9")
        connection.commit()
        connection.close()
        self.digest = BlobStore(self.root / "blobs", 0).put(CANARY.encode() * 9000)

    def hits(self) -> list[str]:
        return sorted(
            path.name for path in self.root.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rows(folder: Folder, vault: Vault | None) -> int:
    keys = list(vault.keys("store").values()) if vault else []
    connection = sqlite.connect(folder.parts.database, sqlite.key_for(folder.parts.database, keys))
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
    finally:
        connection.close()


def test_without_sqlcipher_nothing_is_begun_and_the_sentence_says_where_it_runs(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.fill()
    monkeypatch.setitem(sys.modules, "sqlcipher3", None)  # as Python does where it is not installed
    place = Place(folder.root, folder.parts.database, folder.parts.blobs, "", lambda _: None, contextlib.nullcontext)
    with pytest.raises(SystemExit):
        encrypt(place, folder.source, Format.TABLE)
    said = capsys.readouterr().err
    assert f"Python {platform.python_version()}" in said
    assert "pip install 'landreeve[sealed]'" in said
    assert not folder.parts.vault.exists()
    assert folder.hits() == sorted(["agent.db", folder.digest])


def test_sealed_and_unsealed_again_it_is_the_same_and_only_the_plain_one_can_be_read(folder: Folder) -> None:
    folder.fill()
    assert folder.hits() == sorted(["agent.db", folder.digest])
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    tally = state.seal(folder.parts, vault)
    assert (tally.database, tally.current, tally.plain) == ("sealed", 1, 0)
    assert folder.hits() == []
    assert rows(folder, vault) == 197
    connection = sqlite.connect(folder.parts.database, vault.newest("store"))
    assert connection.execute("PRAGMA user_version").fetchone()[0] == 7
    connection.execute("INSERT INTO t (a) VALUES ('next')")
    assert connection.execute("SELECT max(n) FROM t").fetchone()[0] == 201  # numbers are not used twice
    connection.rollback()
    connection.close()
    state.unseal(folder.parts, Vault.open(folder.parts.vault, folder.source, folder.root))
    assert folder.hits() == sorted(["agent.db", folder.digest])
    assert rows(folder, None) == 197


def test_fresh_keys_seal_everything_anew_and_the_old_ones_open_nothing(folder: Folder) -> None:
    folder.fill()
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    state.seal(folder.parts, vault)
    old_store, old_blobs = vault.newest("store"), vault.keys("blobs")
    for purpose in ("store", "blobs"):
        vault.add_key(purpose)
    assert rows(folder, vault) == 197  # readable in between
    tally = state.seal(folder.parts, vault)
    assert (tally.database, tally.current, tally.older) == ("sealed", 1, 0)
    assert vault.drop_keys("store") == 1
    assert not sqlite.opens(folder.parts.database, old_store)
    with pytest.raises(KeyMissingError):
        BlobStore(folder.root / "blobs", 0, SealedCodec(old_blobs)).read(folder.digest)
    assert rows(folder, Vault.open(folder.parts.vault, folder.source, folder.root)) == 197


def test_another_operators_key_and_the_recovery_key(folder: Folder, tmp_path: Path) -> None:
    vault, words = Vault.create(folder.parts.vault, folder.source, folder.root)
    newest = vault.newest("store")
    other = tmp_path / "other"
    other.write_text("ab" * 32 + "\n")
    other.chmod(0o600)
    with pytest.raises(WrongKeyError, match="does not open"):
        Vault.open(folder.parts.vault, f"file:{other}", folder.root)
    vault.rewrap(f"file:{other}", folder.root)
    assert Vault.open(folder.parts.vault, f"file:{other}", folder.root).newest("store") == newest
    with pytest.raises(WrongKeyError):
        Vault.open(folder.parts.vault, folder.source, folder.root)
    with pytest.raises(WrongKeyError):
        Vault.recover(folder.parts.vault, spelled(bytes(32)), folder.source, folder.root)
    assert Vault.recover(folder.parts.vault, words.lower(), folder.source, folder.root).newest("store") == newest
    assert Vault.open(folder.parts.vault, folder.source, folder.root).newest("store") == newest
    assert unspelled(words) not in folder.parts.vault.read_bytes()
    assert folder.parts.vault.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("written", range(4))
def test_a_vault_cut_short_while_it_is_made_is_whole_or_not_there(folder: Folder, written: int) -> None:
    told: list[str] = []

    class PowerCutError(BaseException):
        pass

    def dying(path: Path, data: bytes, mode: int) -> None:
        nonlocal written
        if not written:
            raise PowerCutError
        written -= 1
        write_durably(path, data, mode)

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCutError):
        patch.setattr("landreeve.sealed.vault.write_durably", dying)
        Vault.create(folder.parts.vault, folder.source, folder.root, told.append)
    if not folder.parts.vault.exists():
        return
    folder.fill()
    assert Vault.recover(folder.parts.vault, told[0], folder.source, folder.root)
    assert state.seal(folder.parts, Vault.open(folder.parts.vault, folder.source, folder.root)).current == 1


@pytest.mark.parametrize("member", ["salt", "master", "recovery", "keys"])
def test_a_damaged_vault_is_called_one(folder: Folder, member: str) -> None:
    Vault.create(folder.parts.vault, folder.source, folder.root)
    document = json.loads(folder.parts.vault.read_bytes())
    for harm in ([] if member == "keys" else "?", document[member][:-2]):
        folder.parts.vault.write_text(json.dumps(document | {member: harm}))
        with pytest.raises(BadVaultError, match="put back a copy"):
            Vault.open(folder.parts.vault, folder.source, folder.root)


def test_where_a_key_comes_from_and_what_is_wrong_with_it(folder: Folder, tmp_path: Path) -> None:
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_key("credential:kek", folder.root, b"s" * 16, credentials) == bytes(range(32))
    said = read_key(f"command:{sys.executable} -c 'print(\"a passphrase\")'", folder.root, b"s" * 16)
    assert len(said) == 32
    inside = folder.root / "kek"
    inside.write_bytes(bytes(32))
    short = tmp_path / "short"
    short.write_bytes(b"short")
    short.chmod(0o600)
    open_to_all = tmp_path / "open"
    open_to_all.write_bytes(bytes(32))
    open_to_all.chmod(0o644)
    (tmp_path / "link").symlink_to(inside)
    for source, sentence in (
        ("credential:kek", "LoadCredentialEncrypted=kek"),
        ("file:/nowhere/at/all", "No such file"),
        (f"file:{inside}", "move it elsewhere"),
        (f"file:{tmp_path}/link", "move it elsewhere"),
        (f"file:{tmp_path}/x/../state/kek", "move it elsewhere"),
        ("command:pass 'unfinished", "No closing quotation"),
        ("command: ", "names no program"),
        (f"file:{open_to_all}", "chmod 600"),
        (f"file:{short}", "32 bytes or 64 hex digits"),
        ("command:false", "gave no passphrase"),
        ("kek", "write credential:NAME"),
    ):
        with pytest.raises(KeyMissingError, match=sentence):
            read_key(source, folder.root, b"s" * 16, {})


def test_a_state_never_goes_on_in_plain_text_without_saying_so(folder: Folder) -> None:
    folder.fill()
    assert opened(folder.parts.vault, "", folder.root, folder.parts.database) is None
    with pytest.raises(KeyMissingError, match="store encrypt"):
        opened(folder.parts.vault, folder.source, folder.root, folder.parts.database)
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    # Cut short before anything was sealed: it works as it did.
    assert opened(folder.parts.vault, "", folder.root, folder.parts.database) is None
    state.seal(folder.parts, vault)
    with pytest.raises(KeyMissingError, match=r"at_rest\.key is not set"):
        opened(folder.parts.vault, "", folder.root, folder.parts.database)
    with pytest.raises(KeyMissingError, match="is sealed"):
        sqlite.key_for(folder.parts.database, [])
    with pytest.raises(WrongKeyError, match="none of the vault's keys"):
        sqlite.key_for(folder.parts.database, [bytes(32)])
    folder.parts.vault.write_bytes(b"{")
    with pytest.raises(BadVaultError, match="put back a copy"):
        opened(folder.parts.vault, folder.source, folder.root, folder.parts.database)


def test_a_store_in_use_is_not_converted(folder: Folder) -> None:
    folder.fill()
    # Another process: two SQLite libraries in one would not see each other's locks.
    code = "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.execute('BEGIN'); c.execute('SELECT * FROM t').fetchone(); print('held', flush=True); input()"  # noqa: E501
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.parts.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    with pytest.raises(sqlite.ConversionError, match="in use"):
        state.seal(folder.parts, vault)
    holder.communicate(b"\n")
    assert rows(folder, vault) == 197


def test_a_full_disk_leaves_no_half_blob_behind(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.fill()
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    real = SealedCodec.writer

    def filling(*arguments: object, **more: object) -> BlobWriter:
        writer: BlobWriter = real(*arguments, **more)  # type: ignore[arg-type]
        monkeypatch.setattr("landreeve.sealed.blobs.write_all", full)
        return writer

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SealedCodec, "writer", filling)
    with pytest.raises(OSError, match="No space left"):
        state.seal(folder.parts, vault)
    assert [path.name for path in (folder.root / "blobs" / "sha256").iterdir()] == [folder.digest]


def test_a_database_is_never_more_readable_than_it_was(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.fill()
    folder.parts.database.chmod(0o600)
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    modes: list[int] = []
    compare = sqlite._compare

    def looking(path: Path, *rest: object) -> None:
        modes.append(path.stat().st_mode & 0o777)
        compare(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite, "_compare", looking)
    state.seal(folder.parts, vault)
    state.unseal(folder.parts, vault)
    assert modes == [0o600, 0o600]
    assert folder.parts.database.stat().st_mode & 0o777 == 0o600


_CONVERT = """
import sys
from pathlib import Path
from landreeve.sealed import state
from landreeve.sealed.vault import Vault
parts = state.Parts(Path(sys.argv[1]), Path(sys.argv[1]) / "agent.db", (Path(sys.argv[1]) / "blobs",))
vault = Vault.open(parts.vault, sys.argv[2], parts.root)
print("ready", flush=True)
getattr(state, sys.argv[3])(parts, vault)
"""


def test_kill_nine_at_any_moment_of_a_conversion_leaves_one_that_works(folder: Folder) -> None:
    folder.fill(1500)
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    draw, interrupted = random.Random(11), 0
    began = time.monotonic()
    state.seal(folder.parts, vault)
    took_s = time.monotonic() - began
    state.unseal(folder.parts, vault)
    for turn in range(6):
        verb = "seal" if turn % 2 == 0 else "unseal"
        command = [sys.executable, "-c", _CONVERT, str(folder.root), folder.source, verb]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0.0, took_s))
        process.send_signal(signal.SIGKILL)
        interrupted += process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert rows(folder, vault) == 1497
        assert BlobStore(folder.root / "blobs", 0, SealedCodec(vault.keys("blobs"))).verify(folder.digest)
    assert interrupted
    state.seal(folder.parts, vault)
    assert folder.hits() == []
    assert rows(folder, vault) == 1497


def test_the_plain_copy_of_an_unsealing_that_was_killed_goes_when_the_folder_is_sealed_again(folder: Folder) -> None:
    folder.fill()
    vault, _ = Vault.create(folder.parts.vault, folder.source, folder.root)
    plain = folder.parts.database.read_bytes()
    state.seal(folder.parts, vault)
    for suffix in ("", "-journal"):  # what a SIGKILL in the middle of the export leaves: the database is sealed still
        (folder.root / f"agent.db.sealing{suffix}").write_bytes(plain)
    state.seal(folder.parts, vault)
    assert folder.hits() == []
    assert rows(folder, vault) == 197


def test_sealed_lines_read_back_in_their_own_file_alone() -> None:
    sealer = LineSealer({"00" * 8: bytes(32), "11" * 8: bytes(range(32))})
    line = sealer.seal("1-0.jsonl", b'{"a": 1}\n{"b": 2}\n')
    assert line.count(b"\n") == 1
    assert b'"a"' not in line
    assert sealer.unseal("1-0.jsonl", line.rstrip(b"\n")) == b'{"a": 1}\n{"b": 2}\n'
    assert sealer.unseal("1-1.jsonl", line.rstrip(b"\n")) is None
    assert sealer.unseal("1-0.jsonl", line[:-9]) is None
    assert sealer.unseal("1-0.jsonl", b'{"plain": 1}') == b'{"plain": 1}'
    assert LineSealer({"22" * 8: bytes(32)}).unseal("1-0.jsonl", line.rstrip(b"\n")) is None
