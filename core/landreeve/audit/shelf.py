"""Where a log lies: tables of the same names in the agent's and in the hub's database, reached inside a transaction."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from landreeve.audit import merkle
from landreeve.audit.entry import Entry
from landreeve.audit.note import Note, Signature, parse_line, parse_note, with_lines

BATCH = 500


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A witness's line under a checkpoint, and the key it signs with."""

    size: int
    witness: str
    key: str
    line: str
    at: str


@dataclass(frozen=True, slots=True)
class Watched:
    """Another's log as this side witnesses it: pinned key, newest believed note, order of what came last, and why it
    was refused since, with the evidence (JSON)."""

    log: str
    key: str
    note: str
    at: str
    epoch: int = 0
    seq: int = 0
    refused: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Someone entries are about; without a key when erased."""

    id: str
    key: bytes | None


class Shelf(ABC):
    """One transaction's view of a log. ``:name`` marks parameters; SQLite and PostgreSQL both read this SQL."""

    @abstractmethod
    def run(self, sql: str, **values: Any) -> Sequence[Sequence[Any]]:
        """The rows of a statement."""

    @abstractmethod
    def add(self, entry: Entry) -> None:
        """Append the entry's row."""

    @abstractmethod
    def page(self, first: int, last: int) -> list[Entry]:
        """Entries by number, both included, in order; fewer when rows are missing."""

    def entries(self, first: int = 1, last: int | None = None) -> Iterator[Entry]:
        """Every row from ``first`` on, in pages."""
        stop = self.last()[0] if last is None else last
        while first <= stop:
            yield from self.page(first, min(stop, first + BATCH - 1))
            first += BATCH

    def last(self) -> tuple[int, str]:
        """Number and hash of the newest entry; (0, "") when there is none."""
        rows = self.run("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        return (int(rows[0][0]), str(rows[0][1])) if rows else (0, "")

    def node(self, level: int, index: int) -> bytes:
        if level == 0:
            return bytes.fromhex(self.run("SELECT hash FROM audit WHERE seq = :seq", seq=index + 1)[0][0])
        rows = self.run("SELECT hash FROM audit_nodes WHERE level = :level AND n = :n", level=level, n=index)
        return bytes(rows[0][0])

    def add_nodes(self, nodes: Sequence[merkle.Node]) -> None:
        for level, index, value in nodes:
            if level:
                self.run("INSERT INTO audit_nodes (level, n, hash) VALUES (:level, :n, :hash) "
                         "ON CONFLICT (level, n) DO UPDATE SET hash = excluded.hash",
                         level=level, n=index, hash=value)  # fmt: skip

    # Checkpoints --------------------------------------------------------------------------------------------

    def notes(self) -> list[tuple[int, str]]:
        """Size and bare note of every checkpoint, smallest first."""
        return [
            (int(size), str(note)) for size, note in self.run("SELECT size, note FROM audit_checkpoints ORDER BY size")
        ]

    def newest(self) -> str:
        """The bare note of the largest checkpoint; empty before the first."""
        rows = self.run("SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1")
        return str(rows[0][0]) if rows else ""

    def sealed_at(self) -> str:
        """When the largest checkpoint was signed; empty before the first."""
        rows = self.run("SELECT at FROM audit_checkpoints ORDER BY size DESC LIMIT 1")
        return str(rows[0][0]) if rows else ""

    def add_note(self, size: int, at: str, note: str) -> None:
        self.run(
            "INSERT INTO audit_checkpoints (size, at, note) VALUES (:size, :at, :note) "
            "ON CONFLICT (size) DO UPDATE SET at = excluded.at, note = excluded.note",
            size=size,
            at=at,
            note=note,
        )

    def cosigned(self, size: int | None = None) -> list[Cosigned]:
        """Cosignatures of the checkpoint of that size, or of all."""
        first, last = (0, 2**62) if size is None else (size, size)
        rows = self.run(
            "SELECT size, witness, key, line, at FROM audit_cosignatures WHERE size BETWEEN :first AND :last "
            "ORDER BY size, witness",
            first=first, last=last,
        )  # fmt: skip
        return [Cosigned(int(row[0]), *map(str, row[1:])) for row in rows]

    def note_of(self, size: int) -> str:
        """The bare note of the checkpoint of that size, or nothing."""
        rows = self.run("SELECT note FROM audit_checkpoints WHERE size = :size", size=size)
        return str(rows[0][0]) if rows else ""

    def witness_key(self, witness: str) -> str:
        """The key that witness has signed with since it was first seen; empty before."""
        rows = self.run("SELECT key FROM audit_cosignatures WHERE witness = :witness LIMIT 1", witness=witness)
        return str(rows[0][0]) if rows else ""

    def witnesses(self, size: int) -> int:
        """How many cosigned the checkpoint of that size."""
        return int(self.run("SELECT count(*) FROM audit_cosignatures WHERE size = :size", size=size)[0][0])

    def witnessed(self) -> int:
        """The size of the newest checkpoint that anybody cosigned; 0 when none."""
        return int(self.run("SELECT max(size) FROM audit_cosignatures")[0][0] or 0)

    def cosigned_by_each(self) -> dict[str, int]:
        """The size of the newest checkpoint that each witness cosigned."""
        rows = self.run("SELECT witness, max(size) FROM audit_cosignatures GROUP BY witness")
        return {str(row[0]): int(row[1]) for row in rows}

    def cosigned_by(self, witness: str) -> int:
        """The size of the newest checkpoint that witness cosigned; 0 when none."""
        rows = self.run("SELECT max(size) FROM audit_cosignatures WHERE witness = :witness", witness=witness)
        return int(rows[0][0] or 0)

    def add_cosigned(self, found: Cosigned) -> None:
        """Keep the line; of each witness the last one of a day stays, or a thousand sites would fill the disk."""
        self.run(
            "DELETE FROM audit_cosignatures WHERE witness = :witness AND size < :size "
            "AND substr(at, 1, 10) = substr(:at, 1, 10)",
            witness=found.witness, size=found.size, at=found.at,
        )  # fmt: skip
        self.run(
            "INSERT INTO audit_cosignatures (size, witness, key, line, at) VALUES (:size, :witness, :key, :line, :at) "
            "ON CONFLICT (size, witness) DO UPDATE SET key = excluded.key, line = excluded.line, at = excluded.at",
            size=found.size, witness=found.witness, key=found.key, line=found.line, at=found.at,
        )  # fmt: skip

    def note_with_witnesses(self, size: int, note: str) -> Note:
        """The checkpoint with every cosignature there is."""
        lines: list[Signature] = [parse_line(found.line) for found in self.cosigned(size)]
        return with_lines(parse_note(note), lines)

    # Others' logs -------------------------------------------------------------------------------------------

    def watched(self, log: str) -> Watched | None:
        """What is known of another's log."""
        return next(iter(self._watched("WHERE log = :log", log=log)), None)

    def all_watched(self) -> list[Watched]:
        """Every log that is witnessed here."""
        return self._watched("")

    def _watched(self, where: str, **values: Any) -> list[Watched]:
        rows = self.run(
            f"SELECT log, key, note, at, epoch, seq, refused, evidence FROM audit_witnessed {where} ORDER BY log",  # noqa: S608 - two literals above
            **values,
        )
        return [
            Watched(str(r[0]), str(r[1]), str(r[2]), str(r[3]), int(r[4]), int(r[5]), str(r[6]), str(r[7]))
            for r in rows
        ]

    def keep_watched(self, row: Watched) -> None:
        """Replace what is known."""
        self.run(
            "INSERT INTO audit_witnessed (log, key, note, at, epoch, seq, refused, evidence) "
            "VALUES (:log, :key, :note, :at, :epoch, :seq, :refused, :evidence) "
            "ON CONFLICT (log) DO UPDATE SET key = excluded.key, note = excluded.note, at = excluded.at, "
            "epoch = excluded.epoch, seq = excluded.seq, refused = excluded.refused, evidence = excluded.evidence",
            log=row.log, key=row.key, note=row.note, at=row.at, epoch=row.epoch, seq=row.seq,
            refused=row.refused, evidence=row.evidence,
        )  # fmt: skip

    def keep_refused(self, log: str, at: str, mark: tuple[int, int], cause: str, evidence: str) -> None:
        """The log was refused; what was believed of it stays."""
        known = self.watched(log) or Watched(log, "", "", at)
        self.keep_watched(replace(known, epoch=mark[0], seq=mark[1], refused=cause, evidence=evidence))

    def forget_watched(self, log: str) -> None:
        """Begin anew with the log's next checkpoint: someone decided to trust it."""
        self.run("DELETE FROM audit_witnessed WHERE log = :log", log=log)

    # Persons ------------------------------------------------------------------------------------------------

    def subject(self, name: str) -> Subject | None:
        """The living subject of that name."""
        rows = self.run("SELECT id, key FROM audit_subjects WHERE name = :name AND erased = ''", name=name)
        return Subject(str(rows[0][0]), _unpacked(rows[0][1])) if rows else None

    def subjects(self) -> dict[str, Subject]:
        """Every subject by id."""
        rows = self.run("SELECT id, key FROM audit_subjects")
        return {str(row[0]): Subject(str(row[0]), _unpacked(row[1])) for row in rows}

    def add_subject(self, subject: str, name: str, key: bytes, at: str) -> None:
        self.run("INSERT INTO audit_subjects (id, name, key, created, erased) VALUES (:id, :name, :key, :at, '')",
                 id=subject, name=name, key=base64.b64encode(key).decode(), at=at)  # fmt: skip

    def erase(self, subject: str, at: str) -> None:
        """Destroy the subject's key and name."""
        self.run("UPDATE audit_subjects SET name = '', key = '', erased = :at WHERE id = :id", id=subject, at=at)

    def add_private(self, seq: int, member: str, subject: str, box: bytes) -> None:
        self.run("INSERT INTO audit_private (seq, member, subject, box) VALUES (:seq, :member, :subject, :box) "
            "ON CONFLICT (seq, member) DO UPDATE SET subject = excluded.subject, box = excluded.box",
                 seq=seq, member=member, subject=subject, box=box)  # fmt: skip

    def private(self, first: int, last: int) -> list[tuple[int, str, str, bytes]]:
        """(seq, member, subject, box) of the entries in that range."""
        rows = self.run("SELECT seq, member, subject, box FROM audit_private WHERE seq BETWEEN :first AND :last",
                        first=first, last=last)  # fmt: skip
        return [(int(row[0]), str(row[1]), str(row[2]), bytes(row[3])) for row in rows]


def _unpacked(key: str) -> bytes | None:
    return base64.b64decode(key) if key else None
