"""Check an exported audit log with nothing but the export: ``python -m landreeve.audit.verify EXPORT``.

It needs neither the hub nor a database nor the network. What only an outsider can know makes it stronger: the log's key
as it was known before (``--key``), and checkpoints that someone saw earlier (``--seen``, a note or an older export): a
log that was put back to an older copy, or split in two, verifies alone and fails against them.
"""

import argparse
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from landreeve.audit import personal
from landreeve.audit.entry import Entry, Tampered
from landreeve.audit.export import FORMAT, Manifest, Revealed
from landreeve.audit.ledger import Walk, member_of
from landreeve.audit.note import (
    BadNoteError,
    Key,
    Note,
    is_valid,
    parse_checkpoint,
    parse_key,
    parse_note,
    signed_by,
)

WHOLE, TAMPERED, UNREADABLE = 0, 3, 2


class BadExportError(ValueError):
    """Files that are no export; the text says which one is wrong."""


class Report(msgspec.Struct, frozen=True):
    """What was found. ``sealed`` entries are under a signed checkpoint, the rest under the chain alone; ``witnesses``
    cosigned the newest checkpoint that has any."""

    whole: bool
    sentence: str
    seq: int = 0
    entries: int = 0
    sealed: int = 0
    checkpoints: int = 0
    witnesses: tuple[str, ...] = ()
    witnessed: int = 0
    key: str = ""
    trusted: bool = False
    revealed: int = 0


@dataclass
class Known:
    """What the verifier knows from elsewhere: the log's key, keys of witnesses, checkpoints seen before."""

    key: Key | None = None
    witnesses: dict[str, Key] = field(default_factory=dict)
    seen: list[Note] = field(default_factory=list)


def verify(export: Path, known: Known) -> Report:
    """Check the export; raises `BadExportError` when it is none."""
    root: Any = zipfile.Path(export) if export.is_file() else export
    manifest = _manifest(root)
    key = known.key or _key(manifest.key)
    report = Report(whole=True, sentence="", key=key.text(), trusted=known.key is not None)
    notes = list(_notes(root))
    fault = _signatures(notes, known.seen, key) or _origin(manifest, key)
    if fault:
        return _failed(report, fault)
    walk = Walk([parse_checkpoint(note.text) for note in (*notes, *known.seen)])
    values = _personal(root)
    for entry in _entries(root):
        if fault := walk.take(entry) or _commitments(entry, values.get(entry.seq, ())):
            return _failed(report, fault)
    if fault := walk.end() or _counted(manifest, walk):
        return _failed(report, fault)
    return _passed(report, walk, notes, {**_keys(root), **known.witnesses}, sum(map(len, values.values())))


def _passed(report: Report, walk: Walk, notes: Sequence[Note], keys: dict[str, Key], revealed: int) -> Report:
    sealed = max((parse_checkpoint(note.text).size for note in notes), default=0)
    witnessed, names = _witnesses(notes, keys)
    words = f"{walk.size} entries are as they were written; {sealed} of them under {len(notes)} signed checkpoints"
    words += f", {witnessed} of those seen by {len(names)} witnesses." if names else ", none of them witnessed."
    if not report.trusted:
        words += " The key is the export's own: compare it with the one you know, or give it with --key."
    return msgspec.structs.replace(
        report,
        sentence=words,
        entries=walk.size,
        sealed=sealed,
        checkpoints=len(notes),
        witnesses=names,
        witnessed=witnessed,
        revealed=revealed,
    )


def _failed(report: Report, fault: Tampered) -> Report:
    return msgspec.structs.replace(report, whole=False, seq=fault.seq, sentence=fault.sentence)


def _origin(manifest: Manifest, key: Key) -> Tampered | None:
    if manifest.origin == key.name:
        return None
    return Tampered(0, f"the export is of the log {manifest.origin!r}, the key of {key.name!r}.")


def _signatures(notes: Sequence[Note], seen: Sequence[Note], key: Key) -> Tampered | None:
    for note in (*notes, *seen):
        checkpoint = parse_checkpoint(note.text)
        if checkpoint.origin != key.name or not signed_by(note, key):
            words = f"the checkpoint of {checkpoint.size} entries is not signed with the log's key {key.id.hex()}."
            return Tampered(checkpoint.size, words)
    return None


def _counted(manifest: Manifest, walk: Walk) -> Tampered | None:
    missing = manifest.entries - walk.size
    return (
        Tampered(walk.size + 1, f"the export names {manifest.entries} entries and has {walk.size}.")
        if missing
        else None
    )


def _witnesses(notes: Sequence[Note], keys: dict[str, Key]) -> tuple[int, tuple[str, ...]]:
    """The largest checkpoint with valid cosignatures, and whose they are."""
    for note in reversed(notes):
        names = {s.name for s in note.signatures if s.name in keys and is_valid(note.text, s, keys[s.name])}
        if names:
            return parse_checkpoint(note.text).size, tuple(sorted(names))
    return 0, ()


def _commitments(entry: Entry, values: Sequence[Revealed]) -> Tampered | None:
    for value in values:
        made = personal.commitment(bytes.fromhex(value.salt), value.member, value.value)
        if made != member_of(entry, value.member):
            return Tampered(entry.seq, f"the {value.member} shown for entry {entry.seq} is not the one it commits to.")
    return None


# Reading ----------------------------------------------------------------------------------------------------


def _manifest(root: Any) -> Manifest:
    try:
        manifest = msgspec.json.decode((root / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, KeyError, msgspec.DecodeError) as error:
        raise BadExportError(f"{root}: no audit export: manifest.json: {error}") from error
    if manifest.format != FORMAT:
        raise BadExportError(f"{root}: an export of format {manifest.format!r}; this verifier reads {FORMAT}")
    return manifest


def _notes(root: Any) -> Iterator[Note]:
    folder = root / "checkpoints"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        try:
            note = parse_note((folder / name).read_bytes().decode())
            parse_checkpoint(note.text)
        except (BadNoteError, UnicodeDecodeError) as error:
            raise BadExportError(f"checkpoints/{name}: {error}") from error
        yield note


def _entries(root: Any) -> Iterator[Entry]:
    yield from _lines(root, "entries.jsonl", Entry)


def _personal(root: Any) -> dict[int, list[Revealed]]:
    found: dict[int, list[Revealed]] = {}
    if (root / "personal.jsonl").is_file():
        for value in _lines(root, "personal.jsonl", Revealed):
            found.setdefault(value.seq, []).append(value)
    return found


def _lines(root: Any, name: str, kind: Any) -> Iterator[Any]:
    decoder = msgspec.json.Decoder(kind)
    try:
        with (root / name).open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield decoder.decode(line)
                except msgspec.DecodeError as error:
                    raise BadExportError(f"{name}, line {number}: {error}") from error
    except (OSError, KeyError) as error:
        raise BadExportError(f"{name}: {error}") from error


def _keys(root: Any) -> dict[str, Key]:
    try:
        raw = msgspec.json.decode((root / "witnesses.json").read_bytes(), type=dict[str, str])
    except (OSError, KeyError, msgspec.DecodeError) as error:
        raise BadExportError(f"witnesses.json: {error}") from error
    return {name: _key(text) for name, text in raw.items()}


def _key(text: str) -> Key:
    try:
        return parse_key(text)
    except BadNoteError as error:
        raise BadExportError(str(error)) from error


def seen_in(path: Path) -> list[Note]:
    """Checkpoints to compare with: of one note, or the newest of an older export."""
    if path.is_file() and not zipfile.is_zipfile(path):
        return [_read_note(path)]
    notes = list(_notes(zipfile.Path(path) if path.is_file() else path))
    return notes[-1:]


def _read_note(path: Path) -> Note:
    try:
        note = parse_note(path.read_text(encoding="utf-8"))
        parse_checkpoint(note.text)
    except (OSError, BadNoteError, UnicodeDecodeError) as error:
        raise BadExportError(f"{path}: {error}") from error
    return note


def text_or_file(text: str) -> str:
    """A key given as such, or as a file that holds it."""
    return text if "+" in text else Path(text).read_text(encoding="utf-8").strip()


def check(export: Path, key: str, seen: Sequence[Path], witnesses: Sequence[str] = ()) -> Report | str:
    """The report for what a command line was given, or what is wrong with it."""
    try:
        known = Known(
            parse_key(text_or_file(key)) if key else None,
            {one.name: one for one in (parse_key(text_or_file(text)) for text in witnesses)},
            [note for path in seen for note in seen_in(path)],
        )
        return verify(export, known)
    except (BadExportError, BadNoteError, OSError, zipfile.BadZipFile) as error:
        return str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the verdict; 0 whole, 3 tampered, 2 no export."""
    parser = argparse.ArgumentParser(prog="landreeve.audit.verify", description="Check an exported audit log offline.")
    parser.add_argument("export", type=Path, help="folder or zip made by audit export")
    parser.add_argument("--key", default="", help="the log's public key as known before (text or file)")
    parser.add_argument("--witness", action="append", default=[], help="a witness's public key (text or file)")
    parser.add_argument("--seen", action="append", type=Path, default=[], help="a note seen before, or an older export")
    parser.add_argument("--json", action="store_true", help="print the whole report")
    given = parser.parse_args(arguments)
    report = check(given.export, given.key, given.seen, given.witness)
    if isinstance(report, str):
        print(f"error: {report}", file=sys.stderr)
        return UNREADABLE
    print(msgspec.json.encode(report).decode() if given.json else ("✓ " if report.whole else "✕ ") + report.sentence)
    return WHOLE if report.whole else TAMPERED


if __name__ == "__main__":
    raise SystemExit(main())
