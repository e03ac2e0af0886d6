"""Who is asking: the person behind a session or a token."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, insert, select, update

from landreeve_hub.access.passwords import digest, new_secret
from landreeve_hub.access.roles import Permission, Role, allowed
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339

IDLE = timedelta(minutes=30)
LIFETIME = timedelta(hours=12)
SETUP_USER = "admin"


@dataclass(frozen=True, slots=True)
class Person:
    """``scopes`` is None for a session, which has all its role allows."""

    name: str
    role: Role
    scopes: frozenset[str] | None = None

    def may(self, permission: Permission) -> bool:
        return allowed(self.role, permission, self.scopes)


def open_session(connection: Connection, user: str, now: datetime) -> str:
    """A new session's secret, for the cookie; only its hash is stored."""
    secret = new_secret("lrs")
    row = {"hash": digest(secret), "user": user, "created": rfc3339(now), "seen": rfc3339(now)}
    connection.execute(insert(tables.sessions).values(row))
    return secret


def close_session(connection: Connection, secret: str) -> None:
    connection.execute(delete(tables.sessions).where(tables.sessions.c.hash == digest(secret)))


def by_session(connection: Connection, secret: str, now: datetime) -> Person | None:
    """The person of a session that is neither idle too long nor too old."""
    row = connection.execute(select(tables.sessions).where(tables.sessions.c.hash == digest(secret))).first()
    if row is None or now - parse_rfc3339(row.seen) > IDLE or now - parse_rfc3339(row.created) > LIFETIME:
        return None
    return _person(connection, row.user, None)


def session_is_stale(connection: Connection, secret: str, now: datetime) -> bool:
    """Whether the session's last use is worth writing down again: one write a minute is enough."""
    seen = connection.execute(
        select(tables.sessions.c.seen).where(tables.sessions.c.hash == digest(secret))
    ).scalar_one_or_none()
    return seen is not None and now - parse_rfc3339(seen) > timedelta(minutes=1)


def touch_session(connection: Connection, secret: str, now: datetime) -> None:
    where = tables.sessions.c.hash == digest(secret)
    connection.execute(update(tables.sessions).where(where).values(seen=rfc3339(now)))


def by_token(connection: Connection, secret: str, now: datetime) -> Person | None:
    """The person of a token that has not expired, narrowed to the token's scopes."""
    row = connection.execute(select(tables.tokens).where(tables.tokens.c.hash == digest(secret))).first()
    if row is None or (row.expires and parse_rfc3339(row.expires) <= now):
        return None
    return _person(connection, row.user, frozenset(row.scopes))


def _person(connection: Connection, name: str, scopes: frozenset[str] | None) -> Person | None:
    role = connection.execute(select(tables.users.c.role).where(tables.users.c.name == name)).scalar_one_or_none()
    return None if role is None else Person(name, Role(role), scopes)
