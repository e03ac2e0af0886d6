"""A device that obeys a newer document than this hub ever made: the hub was restored from an older backup.

Nothing is ordered for it until a person says who is right: the device (what it runs is taken over) or the hub (what the
hub has assigned is ordered anew).
"""

from collections.abc import Collection
from datetime import datetime

from landreeve.wire.messages import Probation
from sqlalchemy import Connection, delete, select, update

from landreeve_hub.desired.conflict import conflicted
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.rollout import book
from landreeve_hub.rollout.state import Assign
from landreeve_hub.store import tables

AHEAD = 1000
"""The next document is so far above the device's: metadata signed again since the backup took numbers too."""


class NoConflictError(ValueError):
    """The device cannot be resolved like that; the text says why."""


def tell(connection: Connection, devices: Collection[str] | None, incidents: Incidents, now: datetime) -> int:
    """An incident for each device in conflict; how many there are."""
    found = conflicted(connection, devices)
    for row in found:
        text = (
            f"{row.site} obeys document {row.generation}, which this hub did not make (its newest is "
            f"{row.newest}): it was probably restored from an older backup. Nothing is ordered for the site until "
            f"someone says who is right: landreeve-hub device resolve {row.site} --adopt (what the site runs) or "
            "--override (what the hub wants)."
        )
        subject = {"device": row.id, "site": row.site, "generation": row.generation, "newest": row.newest}
        incidents.open_in(connection, now, Raise(key_of(row.id), "conflict", "error", "conflict", text, subject))
    return len(found)


def key_of(device: str) -> str:
    """The incident of a device's conflict."""
    return f"conflict:{device}"


def resolve(connection: Connection, device: str, *, adopt: bool) -> str:
    """Say who is right; one sentence of what was done. `NoConflictError` when there is nothing to say, or the hub does
    not know the release that is to be taken over."""
    row = next(iter(conflicted(connection, [device])), None)
    if row is None:
        raise NoConflictError(f"device {device} is in no conflict: this hub made the document it obeys")
    said = _adopt(connection, device, row.site) if adopt else f"{row.site} is ordered what this hub wants."
    stand_in = {"generation": row.generation + AHEAD, "content_hash": "", "digest": ""}
    desired = tables.desired
    known = connection.execute(select(desired.c.device).where(desired.c.device == device)).first()
    if known is None:
        connection.execute(desired.insert().values(device=device, document=b"", signed_at="", **stand_in))
    else:
        connection.execute(update(desired).where(desired.c.device == device).values(**stand_in))
    return said


def _adopt(connection: Connection, device: str, site: str) -> str:
    doc = connection.execute(select(tables.devices.c.doc).where(tables.devices.c.id == device)).scalar_one()
    served = [model for model in doc.get("models") or () if model.get("release")]
    releases = tables.releases
    for model in served:
        query = select(releases.c.state).where(
            releases.c.digest == model["release"], releases.c.model == model["model"]
        )
        if connection.execute(query).scalar() not in {"approved", "quarantined"}:
            raise NoConflictError(
                f"{site} serves {model['model']} {model.get('version', '')}, which this hub does not hold as an "
                "approved release: push and approve it first, or use --override"
            )
    connection.execute(delete(tables.assignments).where(tables.assignments.c.device == device))
    for model in served:
        order = Assign(device, model["release"], str(model.get("version", "")), "adopted", "install", Probation())
        book.assign(connection, model["model"], order)
    names = ", ".join(f"{model['model']} {model.get('version', '')}" for model in served) or "no model"
    return f"What {site} runs ({names}) is what this hub wants from now on."
