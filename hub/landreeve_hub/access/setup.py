"""The one-time code of the first boot: no default password exists."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import Connection, insert, update

from landreeve_hub.access import users
from landreeve_hub.access.identity import SETUP_USER
from landreeve_hub.access.passwords import digest
from landreeve_hub.access.roles import Role
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

VALID = timedelta(hours=24)
# Without letters that are easily taken for another: 16 of 32 are 80 bits, too many to guess under the limiter.
_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


async def issue_code(store: Store, now: datetime) -> str:
    """A fresh code, valid once within 24 h, such as ``K7QF-2MPX-9RTA-C4WH``."""
    code = "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(4))
    row = {"hash": digest(_plain(code)), "expires": rfc3339(now + VALID)}
    await store.write(lambda c: c.execute(insert(tables.setup_codes).values(row)) and None)
    return code


def redeem_code(connection: Connection, code: str, now: datetime) -> str | None:
    """Use the code up; the name of the admin it lets in, or None when it is wrong, used or too old."""
    codes = tables.setup_codes
    fresh = (codes.c.hash == digest(_plain(code))) & (codes.c.used == "") & (codes.c.expires > rfc3339(now))
    if connection.execute(update(codes).where(fresh).values(used=rfc3339(now))).rowcount != 1:
        return None
    users.ensure(connection, SETUP_USER, Role.ADMIN, now)
    return SETUP_USER


def _plain(code: str) -> str:
    return code.replace("-", "").replace(" ", "").upper()
