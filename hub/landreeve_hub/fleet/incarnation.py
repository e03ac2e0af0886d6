"""A site's boxes through time: when one ends, its history stays under its own id, linked both ways.

The name of a site belongs to its present box; a former one is shown as ``ewr~1``, which no site can be called
(`landreeve.wire.ids`). All within the caller's transaction.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from landreeve_hub.fleet import register
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.tables import assignments, desired, devices, enrolment_requests, enrolment_tokens

SUPERSEDED = "superseded"


def holder_of(connection: Connection, site: str) -> Row[Any] | None:
    """The box that has the site's name now, revoked or not."""
    return connection.execute(select(devices).where(devices.c.site == site)).one_or_none()


def succeed_in(connection: Connection, holder: Row[Any], successor: str, now: datetime) -> dict[str, Any]:
    """End the present box and free its name; what its successor's row says of it."""
    number = int(holder.incarnation)
    changes = {"site": f"{holder.site}~{number}", "replaced_by": successor}
    connection.execute(update(devices).where(devices.c.id == holder.id).values(changes))
    end_in(connection, holder.id, now, SUPERSEDED)
    return {"incarnation": number + 1, "replaces": holder.id}


def hand_over_in(connection: Connection, former: str, successor: str) -> None:
    """The site goes on with the models it had: they are ordered for its new box."""
    table = assignments
    rows = connection.execute(select(table).where(table.c.device == former)).mappings().all()
    for row in rows:
        connection.execute(table.insert().values({**row, "device": successor}))
    connection.execute(delete(table).where(table.c.device == former))


def end_in(connection: Connection, device: str, now: datetime, reason: str) -> bool:
    """From this transaction on the device is nobody: its facts are refused, its certificates revoked, it is signed
    no document, and tokens that name its site or were spent on it are worth nothing. Whether that was news."""
    row = connection.execute(select(devices).where(devices.c.id == device)).one()
    if row.revoked:
        return False
    changes = {"revoked": True, "online": False, "ended": rfc3339(now), "ended_reason": reason, "state": reason}
    connection.execute(update(devices).where(devices.c.id == device).values(changes))
    register.revoke_in(connection, device, now, reason)
    connection.execute(delete(desired).where(desired.c.device == device))
    _withdraw_tokens(connection, row.site, device, now, reason)
    return True


def _withdraw_tokens(connection: Connection, site: str, device: str, now: datetime, reason: str) -> None:
    tokens = enrolment_tokens
    which = tokens.c.device == device
    if reason != SUPERSEDED:  # the token of a replacement is just being spent
        which |= (tokens.c.site == site) & (tokens.c.used_at == "")
        connection.execute(delete(enrolment_requests).where(enrolment_requests.c.site == site))
    connection.execute(update(tokens).where(which).values(withdrawn=rfc3339(now)))
