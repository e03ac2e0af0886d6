"""A log as files that stand alone: ``manifest.json``, ``entries.jsonl``, ``checkpoints/SIZE.note``, ``witnesses.json``
and, where asked for, ``personal.jsonl``. A folder, or one zip archive."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from landreeve.audit import personal
from landreeve.audit.canonical import plain
from landreeve.audit.ledger import member_of
from landreeve.audit.note import Key, parse_key
from landreeve.audit.shelf import BATCH, Shelf

FORMAT = "landreeve-audit-export/1"


class Manifest(msgspec.Struct, frozen=True):
    """What an export is of: the log's name and public key, when it was made, how many entries it holds."""

    format: str
    origin: str
    key: str
    at: str
    entries: int
    software: str = ""


class Revealed(msgspec.Struct, frozen=True):
    """A personal value with the salt of its commitment: whoever has both can check it."""

    seq: int
    member: str
    salt: str
    value: Any


class Sink(Protocol):
    """Takes the files of an export, in any order, each in pieces."""

    @abstractmethod
    def write(self, name: str, pieces: Iterator[bytes]) -> None: ...


class Folder:
    """Files of a new folder."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True)
        self._root = root

    def write(self, name: str, pieces: Iterator[bytes]) -> None:
        path = self._root / name
        path.parent.mkdir(exist_ok=True)
        with path.open("xb") as file:
            file.writelines(pieces)


class Archive:
    """Members of a zip file; `close` it."""

    def __init__(self, path: Path) -> None:
        import zipfile  # with its compressors a megabyte that a site seldom needs

        self._zip = zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED)

    def write(self, name: str, pieces: Iterator[bytes]) -> None:
        with self._zip.open(name, "w") as member:
            for piece in pieces:
                member.write(piece)

    def close(self) -> None:
        self._zip.close()


def write(shelf: Shelf, key: Key, at: str, sink: Sink, *, software: str = "", reveal: bool = False) -> Manifest:
    """Write the log as it stands in this transaction. ``reveal`` adds what is personal, readable for ever: without it
    an erasure also reaches exports made before."""
    size, _ = shelf.last()
    manifest = Manifest(FORMAT, key.name, key.text(), at, size, software)
    sink.write("manifest.json", iter([msgspec.json.format(msgspec.json.encode(manifest), indent=2)]))
    sink.write("entries.jsonl", (msgspec.json.encode(entry) + b"\n" for entry in shelf.entries(1, size)))
    witnesses: dict[str, str] = {}
    for number, text in shelf.notes():
        whole = shelf.note_with_witnesses(number, text).whole()
        sink.write(f"checkpoints/{number:012d}.note", iter([whole.encode()]))
    for found in shelf.cosigned():
        witnesses.setdefault(parse_key(found.key).name, found.key)
    sink.write("witnesses.json", iter([msgspec.json.encode(witnesses)]))
    if reveal:
        sink.write("personal.jsonl", _revealed(shelf, size))
    return manifest


def _revealed(shelf: Shelf, size: int) -> Iterator[bytes]:
    subjects = shelf.subjects()
    for first in range(1, size + 1, BATCH):
        entries = {entry.seq: entry for entry in shelf.page(first, min(size, first + BATCH - 1))}
        for seq, member, subject, box in shelf.private(first, first + BATCH - 1):
            key = subjects[subject].key if subject in subjects else None
            if key is None or seq not in entries:
                continue
            committed = str(member_of(entries[seq], member))
            salt, value = personal.opened(key, seq, member, box, committed)
            yield msgspec.json.encode(Revealed(seq, member, salt.hex(), plain(value))) + b"\n"
