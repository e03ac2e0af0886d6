"""Which devices changed since: a number that grows with every change of what a rollout looks at.

Triggers of the database write it, whoever writes the tables, so a look at the fleet reads the devices that changed and
no others. They are made anew at each opening: a migration that rebuilds a table drops its triggers. Whoever writes
holds the store alone until it commits (`landreeve_hub.store.database`), so numbers are seen in the order in which they
were taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, func, select, text

from landreeve_hub.store.tables import device_changes

# Table, the column that names the device, and the columns whose change counts (all of them for the small tables).
_WATCHED = (
    (
        "devices",
        "id",
        ("online", "doc", "labels", "revoked", "site", "state", "agent", "features", "generation", "runs"),
    ),
    ("updates", "device", ()),
    ("assignments", "device", ()),
    ("desired", "device", ("generation",)),
    ("windows", "device", ()),
)


@dataclass(frozen=True, slots=True)
class Changed:
    """The devices that changed, and the number to ask from the next time."""

    devices: frozenset[str]
    number: int


def newest(connection: Connection) -> int:
    """The number of the newest change."""
    return connection.execute(select(func.max(device_changes.c.n))).scalar() or 0


def since(connection: Connection, number: int) -> Changed:
    """What changed after that number."""
    query = select(device_changes.c.n, device_changes.c.device).where(device_changes.c.n > number)
    rows = connection.execute(query).all()
    return Changed(frozenset(row.device for row in rows), max((row.n for row in rows), default=number))


def install(engine: Engine) -> None:
    """Make the triggers that are missing."""
    statements = _postgresql() if engine.dialect.name == "postgresql" else _sqlite()
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _sqlite() -> Iterable[str]:
    for table, column, watched in _WATCHED:
        of = f" OF {', '.join(watched)}" if watched else ""
        for event, row, when in (
            ("insert", "NEW", "INSERT"),
            ("update", "NEW", f"UPDATE{of}"),
            ("delete", "OLD", "DELETE"),
        ):
            name = f"changed_{table}_{event}"
            yield f"DROP TRIGGER IF EXISTS {name}"
            forget = f"DELETE FROM device_changes WHERE device = {row}.{column}"  # noqa: S608  our own names
            note = f"INSERT INTO device_changes (device) VALUES ({row}.{column})"  # noqa: S608  our own names
            yield f"CREATE TRIGGER {name} AFTER {when} ON {table} BEGIN {forget}; {note}; END"


def _postgresql() -> Iterable[str]:
    yield """
        CREATE OR REPLACE FUNCTION note_device_change() RETURNS trigger AS $$
        DECLARE name text;
        BEGIN
            IF TG_OP = 'DELETE' THEN EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO name USING OLD;
            ELSE EXECUTE format('SELECT ($1).%I', TG_ARGV[0]) INTO name USING NEW; END IF;
            INSERT INTO device_changes (device) VALUES (name)
            ON CONFLICT (device) DO UPDATE SET n = nextval(pg_get_serial_sequence('device_changes', 'n'));
            RETURN NULL;
        END $$ LANGUAGE plpgsql
    """
    for table, column, watched in _WATCHED:
        of = f" OF {', '.join(watched)}" if watched else ""
        yield f"DROP TRIGGER IF EXISTS changed_{table} ON {table}"
        yield (
            f"CREATE TRIGGER changed_{table} AFTER INSERT OR DELETE OR UPDATE{of} ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION note_device_change('{column}')"
        )
