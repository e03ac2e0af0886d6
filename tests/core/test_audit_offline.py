"""The offline verifier against each attack on a log, and a weaker check that each attack would pass.

The weaker checks are planted here to show that the tests can fail: whoever checks less is deceived.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.audit import export, keys, ledger, note
from landreeve.audit.entry import Act, Entry, leaf, sealed
from landreeve.audit.keys import LogKeys
from landreeve.audit.note import Note
from landreeve.audit.sealing import Sealer, Watching, offer
from landreeve.audit.shelf import Cosigned
from landreeve.audit.verify import BadExportError, Known, Report, verify
from landreeve_agent.audit.shelf import SiteShelf
from landreeve_agent.store.migrations import migrations
from sqlite_utils import Database as Tables

AT = "2026-11-23T06:00:00Z"
NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)


class Log:
    """A log in memory, with its keys on disk."""

    def __init__(self, root: Path, name: str = "log") -> None:
        self.tables = Tables(memory=True)
        migrations.apply(self.tables)
        self.shelf = SiteShelf(self.tables)
        self.keys = keys.load(root / name, name)
        self.sealer = Sealer(self.keys, root / name / "audit.checkpoint")
        self.root = root

    def write(self, count: int, actor: str = "ann", *, personal: bool = False) -> None:
        about = {"actor": actor} if personal else {}
        for _ in range(count):
            number = self.shelf.last()[0] + 1
            act = Act(actor, "rollout.pause", f"r-{number}", data={"why": "é", "share": 0.5}, personal=about)
            ledger.append(self.shelf, AT, act, os.urandom)

    def seal(self) -> str:
        whole = self.sealer.seal(self.shelf, None, AT)
        assert isinstance(whole, str), whole
        return whole

    def export(self, name: str, *, reveal: bool = False) -> Path:
        path = self.root / name
        export.write(self.shelf, self.keys.key, AT, export.Folder(path), reveal=reveal)
        return path


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = Log(tmp_path)
    made.write(5)
    made.seal()
    made.write(4)
    made.seal()
    made.write(1)
    return made


def entries_of(folder: Path) -> list[Entry]:
    return [msgspec.json.decode(line, type=Entry) for line in (folder / "entries.jsonl").read_bytes().splitlines()]


def put(folder: Path, entries: list[Entry]) -> None:
    (folder / "entries.jsonl").write_bytes(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    manifest["entries"] = len(entries)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def relinked(entries: list[Entry]) -> list[Entry]:
    """What a forger makes who knows the code: numbers, chain and hashes all anew."""
    made: list[Entry] = []
    for number, entry in enumerate(entries, start=1):
        prev = made[-1].hash if made else "0" * 64
        made.append(sealed(msgspec.structs.replace(entry, seq=number, prev=prev)))
    return made


def resign(folder: Path, private: LogKeys) -> None:
    """Checkpoints over the forged entries by someone who holds that key."""
    entries = entries_of(folder)
    for path in (folder / "checkpoints").iterdir():
        size = note.parse_checkpoint(note.parse_note(path.read_text()).text).size
        walk = ledger.Walk([])
        for entry in entries[:size]:
            assert walk.take(entry) is None
        if walk.size < size:
            path.unlink()
            continue
        text = note.Checkpoint(private.origin, size, walk.root()).text()
        path.write_text(Note(text, (note.sign(text, private.origin, private.log),)).whole())


# Weaker checks, each of which one attack passes -------------------------------------------------------------


def only_links(folder: Path) -> bool:
    """Each entry names the hash of the one before, and nobody computes it."""
    entries = entries_of(folder)
    return all(a.hash == b.prev for a, b in itertools.pairwise(entries))


def only_hashes(folder: Path) -> bool:
    """Each entry has its hash, and nobody looks at its neighbours."""
    return all(leaf(entry).hex() == entry.hash for entry in entries_of(folder))


def only_chain(folder: Path) -> bool:
    """The whole chain, and no checkpoint."""
    walk = ledger.Walk([])
    return all(walk.take(entry) is None for entry in entries_of(folder))


def as_a_set(folder: Path) -> bool:
    """Every entry under the checkpoint is there, in whatever order."""
    return only_hashes(folder) and len({e.hash for e in entries_of(folder)}) == len(entries_of(folder))


def alone(folder: Path) -> bool:
    """The export by itself, with the key it brings along and nothing seen before."""
    return verify(folder, Known()).whole


def edit(folder: Path, _: Log) -> None:
    entries = entries_of(folder)
    entries[2] = msgspec.structs.replace(entries[2], actor="bob")
    put(folder, entries)


def delete(folder: Path, _: Log) -> None:
    entries = entries_of(folder)
    put(folder, entries[:2] + entries[3:])


def truncate(folder: Path, _: Log) -> None:
    put(folder, entries_of(folder)[:7])


def reorder(folder: Path, _: Log) -> None:
    entries = entries_of(folder)
    entries[1], entries[2] = entries[2], entries[1]
    put(folder, entries)


def rewrite(folder: Path, _: Log) -> None:
    """Edited, and the chain made whole again, without the log's key."""
    entries = entries_of(folder)
    entries[2] = msgspec.structs.replace(entries[2], actor="bob")
    put(folder, relinked(entries))


def fork(folder: Path, log: Log) -> None:
    """Edited and signed anew by the log itself: its operator shows one log here and another there."""
    rewrite(folder, log)
    resign(folder, log.keys)


def restore(folder: Path, log: Log) -> None:
    """An older copy put back: everything is genuine, and the end is missing."""
    put(folder, entries_of(folder)[:5])
    resign(folder, log.keys)


def swap(folder: Path, log: Log) -> None:
    """Another log altogether, under a key that was swapped for the log's."""
    rewrite(folder, log)
    thief = keys.load(log.root / "thief", log.keys.origin)
    resign(folder, thief)
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(msgspec.json.encode({**manifest, "key": thief.key.text()}))


ATTACKS: dict[str, tuple[Callable[[Path, Log], None], Callable[[Path], bool], str]] = {
    "edit": (edit, only_links, "entry 3 was changed"),
    "delete": (delete, only_hashes, "entry 3 is missing"),
    "truncate": (truncate, only_chain, "2 of 9 entries are gone from the end"),
    "reorder": (reorder, as_a_set, "entry 2 is missing; the next one found is 3"),
    "rewrite": (rewrite, only_chain, "the first 5 entries were rewritten"),
    "fork": (fork, alone, "the first 9 entries were rewritten"),
    "restore an old backup": (restore, alone, "4 of 9 entries are gone from the end"),
    "swapped key": (swap, alone, "not signed with the log's key"),
}


def known(log: Log) -> Known:
    """What an outsider knows: the log's key from before, and the checkpoint that a witness saw."""
    return Known(log.keys.key, seen=[note.parse_note(log.shelf.newest())])


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_detected_where_a_weaker_check_is_deceived(log: Log, attack: str) -> None:
    harm, weaker, sentence = ATTACKS[attack]
    folder = log.export("export")
    assert verify(folder, known(log)).whole
    assert weaker(folder)
    harm(folder, log)
    report = verify(folder, known(log))
    assert not report.whole
    assert sentence in report.sentence
    assert weaker(folder), "the weaker check finds it too: this test would not notice a verifier that does less"


def test_an_untouched_export_says_what_holds_it(log: Log) -> None:
    report = verify(log.export("export"), known(log))
    assert (report.entries, report.sealed, report.checkpoints, report.trusted) == (10, 9, 2, True)
    assert "none of them witnessed" in report.sentence
    assert "The key is the export's own" in verify(log.export("again"), Known()).sentence


def test_witnesses_are_counted_by_their_valid_signatures(log: Log, tmp_path: Path) -> None:
    for name in ("w-1", "w-2"):
        offered = offer(log.shelf, log.keys.key.text(), 0)
        assert offered
        witness = Log(tmp_path, name)
        verdict = Watching(witness.keys).judge(witness.shelf, "log", offered, NOW)
        assert verdict
        log.shelf.add_cosigned(Cosigned(9, name, witness.keys.witness_key.text(), verdict.line, AT))
    folder = log.export("export")
    assert verify(folder, known(log)).witnesses == ("w-1", "w-2")
    path = folder / "checkpoints" / "000000000009.note"
    forged = []
    for line in path.read_text().splitlines(keepends=True):
        value = line.strip().rpartition(" ")[2]
        forged.append(line.replace(value, value[:40] + "AAAA" + value[44:]) if "w-1" in line else line)
    path.write_text("".join(forged))
    assert verify(folder, known(log)).witnesses == ("w-2",)


def test_the_verifier_runs_alone_from_a_zip(log: Log, tmp_path: Path) -> None:
    archive = export.Archive(tmp_path / "audit.zip")
    export.write(log.shelf, log.keys.key, AT, archive)
    archive.close()
    seen = tmp_path / "seen.note"
    seen.write_text(log.shelf.newest())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "landreeve.audit.verify", *arguments]
        return subprocess.run(program, capture_output=True, text=True, check=False)

    good = run(str(tmp_path / "audit.zip"), "--key", log.keys.key.text(), "--seen", str(seen), "--json")
    assert good.returncode == 0, good.stderr
    assert msgspec.json.decode(good.stdout, type=Report).entries == 10
    stranger = keys.load(tmp_path / "stranger", "log").key.text()
    assert run(str(tmp_path / "audit.zip"), "--key", stranger).returncode == 3
    assert run(str(seen)).returncode == 2


def test_it_needs_neither_database_nor_hub() -> None:
    unwanted = "[m for m in sys.modules if 'sql' in m or '_hub' in m or '_agent' in m]"
    code = f"import sys, landreeve.audit.verify; print({unwanted})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("harm", ["manifest.json", "entries.jsonl", "witnesses.json", "checkpoints/000000000009.note"])
def test_a_damaged_export_is_named_with_its_file(log: Log, harm: str) -> None:
    folder = log.export("export")
    (folder / harm).write_bytes(b'{"no": \xff')
    with pytest.raises(BadExportError, match=harm):
        verify(folder, Known())


# Persons ----------------------------------------------------------------------------------------------------


def files_with(folder: Path, text: bytes) -> list[Any]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_erasure_takes_the_name_away_and_the_chain_still_verifies(log: Log) -> None:
    log.write(3, "zacharias", personal=True)
    log.seal()
    assert [e.actor for e in ledger.revealed(log.shelf, log.shelf.page(11, 13))] == ["zacharias"] * 3
    assert files_with(log.export("named", reveal=True), b"zacharias") == ["personal.jsonl"]
    assert verify(log.root / "named", known(log)).revealed == 3
    subject = log.shelf.subject("zacharias")
    assert subject
    log.shelf.erase(subject.id, AT)
    assert [e.actor for e in ledger.revealed(log.shelf, log.shelf.page(11, 13))] == [ledger.ERASED] * 3
    assert files_with(log.export("after", reveal=True), b"zacharias") == []
    assert verify(log.root / "after", known(log)).whole
    log.write(1, "zacharias", personal=True)  # they come again: under a key of their own
    again = log.shelf.subject("zacharias")
    assert again
    assert again.id != subject.id


def test_a_name_cannot_be_guessed_from_its_commitment(log: Log) -> None:
    """Without a salt the same name would have one commitment, and a list of names would find it."""
    log.write(2, "ann", personal=True)
    first, second = log.shelf.page(11, 12)
    assert first.actor.startswith("commit:")
    assert first.actor != second.actor


def test_a_revealed_name_that_is_not_the_one_committed_to_is_refused(log: Log) -> None:
    log.write(1, "ann", personal=True)
    folder = log.export("export", reveal=True)
    path = folder / "personal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"bob"'))
    assert "is not the one it commits to" in verify(folder, Known()).sentence
