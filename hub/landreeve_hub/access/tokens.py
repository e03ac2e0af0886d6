"""Bearer tokens: 256 bits, kept as sha256, with scopes and an expiry."""

import asyncio
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from landreeve_hub.access import identity, users
from landreeve_hub.access.passwords import digest, new_secret
from landreeve_hub.access.roles import Permission, Role
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

DEFAULT_DAYS = 90
MAX_DAYS = 366
STATE_FOLDER_USER = identity.SETUP_USER  # whoever owns the folder is the one person the setup code lets in


def check_scopes(scopes: list[str]) -> list[str]:
    """The same scopes when each is a permission or ``*``; `ValueError` names the first that is not."""
    for scope in scopes:
        if scope != "*" and scope not in set(Permission):
            raise ValueError(f"scopes: {scope[:40]!r} is unknown; use '*' or some of {', '.join(Permission)}")
    return scopes or ["*"]


def create(connection: Connection, user: str, name: str, *, scopes: list[str], days: float, now: datetime) -> str:
    """A new token's text, shown once."""
    if not 0 < days <= MAX_DAYS:
        raise ValueError(f"days: {days} must be above 0 and at most {MAX_DAYS}")
    known = connection.execute(select(tables.users.c.name).where(tables.users.c.name == user)).first()
    if known is None:
        raise LookupError(f"user: {user[:80]!r} is unknown; add it first (user add)")
    secret = new_secret("lrh")
    row = {
        "hash": digest(secret),
        "user": user,
        "name": name,
        "scopes": check_scopes(scopes),
        "expires": rfc3339(now + timedelta(days=days)),
        "created": rfc3339(now),
    }
    connection.execute(insert(tables.tokens).values(row))
    return secret


def revoke(connection: Connection, short: str) -> bool:
    """Delete the token whose hash begins so; True when exactly one did."""
    found = connection.execute(select(tables.tokens.c.hash).where(tables.tokens.c.hash.startswith(short))).all()
    if len(found) != 1:
        return False
    connection.execute(delete(tables.tokens).where(tables.tokens.c.hash == found[0].hash))
    return True


def listed(connection: Connection, user: str | None = None) -> list[dict[str, Any]]:
    """Tokens without their secrets; ``id`` is the beginning of the hash."""
    query = select(tables.tokens).order_by(tables.tokens.c.created)
    if user is not None:
        query = query.where(tables.tokens.c.user == user)
    return [
        {"id": r.hash[:12], "user": r.user, "name": r.name, "scopes": r.scopes, "expires": r.expires}
        for r in connection.execute(query)
    ]


async def ensure_admin_token(store: Store, path: Path, now: datetime) -> None:
    """Keep a valid admin token in ``path`` (0600) for whoever owns the state folder."""
    held = await asyncio.to_thread(_read, path)
    person = await store.read(lambda c: identity.by_token(c, held, now + timedelta(days=1)))
    if person is not None:
        return

    def made(connection: Connection) -> str:
        users.ensure(connection, STATE_FOLDER_USER, Role.ADMIN, now)
        return create(connection, STATE_FOLDER_USER, "state folder", scopes=["*"], days=MAX_DAYS, now=now)

    await asyncio.to_thread(_write, path, await store.write(made))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
    temporary.replace(path)
