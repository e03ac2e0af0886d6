"""The agent's tables, as numbered steps that are applied once each and in order.

A step that has been in the field is never edited: a change adds a step below it. Tables are STRICT, so a
value of the wrong kind is refused where it is written and not found where it is read. Times are RFC 3339 UTC
text of one width (`landreeve_agent.store.stamps`), so that text order is time order.
"""

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

migrations = Migrations("agent")

_LINK = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    # AUTOINCREMENT: a number is never used twice, even when its row is gone.
    (
        "CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, body BLOB NOT NULL, "
        "bytes INTEGER NOT NULL, at TEXT NOT NULL) STRICT"
    ),
    "CREATE INDEX outbox_kind ON outbox (kind, seq)",
    (
        "CREATE TABLE outbox_size (one INTEGER PRIMARY KEY CHECK (one = 1), facts INTEGER NOT NULL, "
        "bytes INTEGER NOT NULL) STRICT"
    ),
    "INSERT INTO outbox_size VALUES (1, 0, 0)",
    (
        "CREATE TRIGGER outbox_insert AFTER INSERT ON outbox BEGIN "
        "UPDATE outbox_size SET facts = facts + 1, bytes = bytes + new.bytes; END"
    ),
    (
        "CREATE TRIGGER outbox_delete AFTER DELETE ON outbox BEGIN "
        "UPDATE outbox_size SET facts = facts - 1, bytes = bytes - old.bytes; END"
    ),
    (
        "CREATE TRIGGER outbox_update AFTER UPDATE OF bytes ON outbox BEGIN "
        "UPDATE outbox_size SET bytes = bytes - old.bytes + new.bytes; END"
    ),
    "CREATE TABLE commands (id TEXT PRIMARY KEY, at TEXT NOT NULL, outcome TEXT NOT NULL) STRICT",
    (
        "CREATE TABLE events (n INTEGER PRIMARY KEY, at TEXT NOT NULL, name TEXT NOT NULL, subject TEXT NOT NULL, "
        "severity TEXT NOT NULL, sentence TEXT NOT NULL, data TEXT NOT NULL DEFAULT '{}') STRICT"
    ),
)

_DATA = (
    (
        "CREATE TABLE samples (model TEXT NOT NULL, id TEXT NOT NULL, at TEXT NOT NULL, version TEXT, release TEXT, "
        '"row" TEXT NOT NULL, p REAL, shadow REAL, shadow_release TEXT, us INTEGER, err TEXT, captured TEXT NOT NULL, '
        "PRIMARY KEY (model, id)) STRICT"
    ),
    "CREATE INDEX samples_at ON samples (model, at)",
    "CREATE INDEX samples_release ON samples (model, release, captured)",
    (
        "CREATE TABLE labels (model TEXT NOT NULL, id TEXT NOT NULL, label REAL NOT NULL, at TEXT NOT NULL, "
        "received TEXT NOT NULL, PRIMARY KEY (model, id)) STRICT, WITHOUT ROWID"
    ),
    (
        "CREATE TABLE windows (model TEXT NOT NULL, window INTEGER NOT NULL, release TEXT, first TEXT NOT NULL, "
        "last TEXT NOT NULL, rows INTEGER NOT NULL, report TEXT NOT NULL, PRIMARY KEY (model, window)) STRICT"
    ),
    "CREATE TABLE spool (file TEXT PRIMARY KEY, offset INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0) STRICT",
    (
        "CREATE TABLE counters (model TEXT NOT NULL, day TEXT NOT NULL, version TEXT NOT NULL, "
        "predictions INTEGER NOT NULL DEFAULT 0, errors INTEGER NOT NULL DEFAULT 0, "
        "us_hist TEXT NOT NULL DEFAULT '{}', "
        "PRIMARY KEY (model, day, version)) STRICT"
    ),
    (
        "CREATE TABLE runs (id TEXT PRIMARY KEY, model TEXT NOT NULL, state TEXT NOT NULL, request TEXT NOT NULL, "
        "result TEXT, at TEXT NOT NULL, finished TEXT) STRICT"
    ),
)

_KEPT = (
    # How many rows are kept of each model: counting 100,000 of them takes 20 ms, and the status asks every second.
    (
        "CREATE TABLE kept (model TEXT PRIMARY KEY, samples INTEGER NOT NULL DEFAULT 0, "
        "labels INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID"
    ),
    "INSERT INTO kept (model, samples) SELECT model, count(*) FROM samples WHERE true GROUP BY model",
    (
        "INSERT INTO kept (model, labels) SELECT model, count(*) FROM labels WHERE true GROUP BY model "
        "ON CONFLICT (model) DO UPDATE SET labels = excluded.labels"
    ),
    *(
        f"CREATE TRIGGER kept_{table}_{verb} AFTER {verb} ON {table} BEGIN "  # noqa: S608 - literals below
        f"INSERT INTO kept (model, {table}) VALUES ({row}.model, {by}) "
        f"ON CONFLICT (model) DO UPDATE SET {table} = {table} + {by}; END"
        for table in ("samples", "labels")
        for verb, row, by in (("insert", "new", 1), ("delete", "old", -1))
    ),
)

_PLANS = (
    (
        "CREATE TABLE plans (model TEXT NOT NULL, release TEXT NOT NULL, at TEXT NOT NULL, report BLOB NOT NULL, "
        "PRIMARY KEY (model, release)) STRICT"
    ),
)

_UPDATE = (
    (
        "CREATE TABLE updates (model TEXT PRIMARY KEY, generation INTEGER NOT NULL, state BLOB NOT NULL, "
        "at TEXT NOT NULL) STRICT"
    ),
    (
        "CREATE TABLE transitions (n INTEGER PRIMARY KEY, model TEXT NOT NULL, rollout TEXT NOT NULL, "
        "generation INTEGER NOT NULL, previous TEXT NOT NULL, state TEXT NOT NULL, cause TEXT NOT NULL, "
        "sentence TEXT NOT NULL, at TEXT NOT NULL) STRICT"
    ),
    "CREATE INDEX transitions_model ON transitions (model, n)",
    (
        "CREATE TABLE quarantine (digest TEXT PRIMARY KEY, model TEXT NOT NULL, rollout TEXT NOT NULL, "
        "cause TEXT NOT NULL, sentence TEXT NOT NULL, at TEXT NOT NULL) STRICT"
    ),
)


@migrations()
def first_tables(db: SqliteDatabase) -> None:
    """Everything version 0.1 keeps."""
    for statement in (*_LINK, *_DATA, *_UPDATE):
        db.conn.execute(statement)


@migrations()
def kept_rows(db: SqliteDatabase) -> None:
    """Running counts of samples and labels."""
    for statement in _KEPT:
        db.conn.execute(statement)


@migrations()
def plans(db: SqliteDatabase) -> None:
    """What preflight tried for each release, and which plan won."""
    for statement in _PLANS:
        db.conn.execute(statement)


_AUDIT = (
    # Rows of the log are numbered by the log itself; what is personal lies beside, sealed (`landreeve.audit`).
    (
        "CREATE TABLE audit (seq INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, "
        "object TEXT NOT NULL, decision TEXT NOT NULL, data TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL, "
        "format INTEGER NOT NULL) STRICT"
    ),
    (
        "CREATE TABLE audit_nodes (level INTEGER NOT NULL, n INTEGER NOT NULL, hash BLOB NOT NULL, "
        "PRIMARY KEY (level, n)) STRICT, WITHOUT ROWID"
    ),
    (
        "CREATE TABLE audit_private (seq INTEGER NOT NULL, member TEXT NOT NULL, subject TEXT NOT NULL, "
        "box BLOB NOT NULL, PRIMARY KEY (seq, member)) STRICT"
    ),
    (
        "CREATE TABLE audit_subjects (id TEXT PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL, "
        "created TEXT NOT NULL, erased TEXT NOT NULL) STRICT"
    ),
    "CREATE TABLE audit_checkpoints (size INTEGER PRIMARY KEY, at TEXT NOT NULL, note TEXT NOT NULL) STRICT",
    (
        "CREATE TABLE audit_cosignatures (size INTEGER NOT NULL, witness TEXT NOT NULL, key TEXT NOT NULL, "
        "line TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (size, witness)) STRICT"
    ),
    "CREATE INDEX audit_cosignatures_witness ON audit_cosignatures (witness, size)",
    (
        "CREATE TABLE audit_witnessed (log TEXT PRIMARY KEY, key TEXT NOT NULL, note TEXT NOT NULL, at TEXT NOT NULL, "
        "epoch INTEGER NOT NULL, seq INTEGER NOT NULL, refused TEXT NOT NULL, evidence TEXT NOT NULL) STRICT"
    ),
)


@migrations()
def audit(db: SqliteDatabase) -> None:
    """The site's own audit log, and the hub's as it was witnessed."""
    for statement in _AUDIT:
        db.conn.execute(statement)


_ARMS = (
    # How a split of the traffic chose who answered: by the hash of a key, never the key.
    *(f"ALTER TABLE samples ADD COLUMN {name}" for name in ("unit TEXT", "unit_by TEXT", "arm TEXT", "against TEXT")),
    "ALTER TABLE samples ADD COLUMN share REAL",
    "CREATE INDEX samples_arms ON samples (model, captured) WHERE unit IS NOT NULL",
)


@migrations()
def arms(db: SqliteDatabase) -> None:
    """The assignment of each row that a split gave to one of two versions."""
    for statement in _ARMS:
        db.conn.execute(statement)


_FORMER = (
    # Facts that wait under the epoch they were made in, after the outbox had to begin a new one.
    (
        "CREATE TABLE outbox_former (epoch INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, "
        "body BLOB NOT NULL, bytes INTEGER NOT NULL, at TEXT NOT NULL, PRIMARY KEY (epoch, seq)) STRICT"
    ),
    (
        "CREATE TRIGGER outbox_former_insert AFTER INSERT ON outbox_former BEGIN "
        "UPDATE outbox_size SET facts = facts + 1, bytes = bytes + new.bytes; END"
    ),
    (
        "CREATE TRIGGER outbox_former_delete AFTER DELETE ON outbox_former BEGIN "
        "UPDATE outbox_size SET facts = facts - 1, bytes = bytes - old.bytes; END"
    ),
)


@migrations()
def former(db: SqliteDatabase) -> None:
    """Facts of former epochs."""
    for statement in _FORMER:
        db.conn.execute(statement)
