"""The people of the hub."""

from datetime import datetime
from typing import Any

from landreeve.wire.ids import check_id
from sqlalchemy import Connection, select

from landreeve_hub.access.passwords import hash_password, matches
from landreeve_hub.access.roles import Role
from landreeve_hub.store import tables
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.upsert import insert_new


class UserExistsError(ValueError):
    """The name is taken."""


def parse_role(text: str) -> Role:
    """The role of that name; `ValueError` lists what there is."""
    if text not in set(Role):
        raise ValueError(f"role: {text[:40]!r} is unknown; use one of {', '.join(Role)}")
    return Role(text)


def add(connection: Connection, name: str, role: Role, password: str, now: datetime) -> None:
    """A new person; without a password they can only use tokens. `UserExistsError` when the name is taken."""
    row = {
        "name": check_id(name),
        "role": role.value,
        "password_hash": hash_password(password) if password else "",
        "created": rfc3339(now),
    }
    if not insert_new(connection, tables.users, row):
        raise UserExistsError(f"user: {name!r} exists already; choose another name")


def ensure(connection: Connection, name: str, role: Role, now: datetime) -> None:
    """The person exists from now on, as first made."""
    insert_new(connection, tables.users, {"name": name, "role": role.value, "created": rfc3339(now)})


def password_fits(connection: Connection, name: str, password: str) -> bool:
    stored = connection.execute(
        select(tables.users.c.password_hash).where(tables.users.c.name == name)
    ).scalar_one_or_none()
    return matches(stored or "", password)


def listed(connection: Connection) -> list[dict[str, Any]]:
    users = tables.users
    rows = connection.execute(select(users.c.name, users.c.role, users.c.created, users.c.password_hash)).all()
    return [{"name": r.name, "role": r.role, "created": r.created, "password": bool(r.password_hash)} for r in rows]
