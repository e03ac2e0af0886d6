"""Boxes that wait for a person: the hub shows the fingerprint of their key, the box shows it too.

A waiting box binds its token to its key, so nobody else can slip in with the same token while a person looks. All
within the caller's transaction.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, select, update

from landreeve_hub.errors import NotFoundError
from landreeve_hub.store.moment import rfc3339
from landreeve_hub.store.tables import devices, enrolment_requests
from landreeve_hub.store.upsert import upsert

WAITING, APPROVED, DENIED = "waiting", "approved", "denied"


class NotWaitingError(NotFoundError, LookupError):
    """No box waits under that id."""


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks: the id it will have, its token's hash, where it asked from, and the device it would replace."""

    device: str
    token: str
    site: str
    fingerprint: str
    address: str
    replaces: str


def note_in(connection: Connection, request: Request, now: datetime) -> None:
    """Remember the box, or that it asked again. What was decided about its key with another token says nothing about
    this one, which may be for another site."""
    table = enrolment_requests
    query = select(table.c.token).where(table.c.device == request.device)
    same = connection.execute(query).scalar_one_or_none() == request.token
    seen = {"asked": rfc3339(now), "seen": rfc3339(now), "state": WAITING, "decided": "", "decided_by": ""}
    keep = {"asked", "state", "decided", "decided_by"} if same else set()
    upsert(connection, table, {**asdict(request), **seen}, keep=keep)


def decision_of(connection: Connection, device: str, token: str) -> str:
    """What was decided about this key with this token; empty when nobody asked, or with another token."""
    table = enrolment_requests
    query = select(table.c.state).where(table.c.device == device, table.c.token == token)
    return connection.execute(query).scalar_one_or_none() or ""


def claimed_by(connection: Connection, token: str) -> str | None:
    """The box that asked first with this token, whatever was decided about it."""
    table = enrolment_requests
    query = select(table.c.device).where(table.c.token == token).order_by(table.c.asked, table.c.device).limit(1)
    return connection.execute(query).scalar_one_or_none()


def decide_in(connection: Connection, device: str, *, approved: bool, by: str, now: datetime) -> dict[str, Any]:
    """Let the box in, or turn it away for good; the request as it stands. `NotWaitingError`."""
    table = enrolment_requests
    found = connection.execute(select(table).where(table.c.device == device)).mappings().first()
    if found is None or found["state"] != WAITING:
        why = f"was {found['state']} already" if found else "is not there"
        raise NotWaitingError(f"the request of {device[:64]!r} {why}; see `landreeve-hub device waiting`")
    decision = {"state": APPROVED if approved else DENIED, "decided": rfc3339(now), "decided_by": by}
    connection.execute(update(table).where(table.c.device == device).values(decision))
    return {**found, **decision}


def forget_in(connection: Connection, device: str) -> None:
    """The box is a device now."""
    connection.execute(delete(enrolment_requests).where(enrolment_requests.c.device == device))


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Who waits, longest first, without the token."""
    table, former = enrolment_requests, devices
    columns = [column for column in table.c if column.name != "token"]
    query = select(*columns, former.c.last_seen.label("former_last_seen"))
    query = query.select_from(table.outerjoin(former, former.c.id == table.c.replaces))
    rows = connection.execute(query.where(table.c.state == WAITING).order_by(table.c.asked)).mappings()
    return [{**row, "former_last_seen": row["former_last_seen"] or ""} for row in rows]
