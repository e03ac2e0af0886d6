"""Who speaks under each identity, kept with the device; two boxes with one identity are told apart from one.

While an identity is doubled nothing is ordered for it, both boxes are told to update nothing, and an incident says in
plain words what to do.
"""

from collections.abc import Container
from datetime import datetime
from typing import Any

import msgspec
from landreeve.wire.messages import DeviceState, Presence
from sqlalchemy import Connection, select, update

from landreeve_hub.fleet.doubles import Said, Sight, forgive, hear, settle
from landreeve_hub.incidents.incidents import CLOSED, Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.tables import devices, incidents

KIND = "cloned_identity"


def note_in(connection: Connection, device: str, state: DeviceState, now: datetime) -> bool:
    """Remember who spoke; whether the identity has just turned out to be doubled, with its incident opened."""
    row = connection.execute(select(devices.c.runs, devices.c.site).where(devices.c.id == device)).one()
    before = sight_of(row.runs)
    try:
        stamp = parse_rfc3339(state.at).timestamp()
    except ValueError:
        stamp = 0.0
    after = hear(before, Said(state.run, state.session, stamp, now.timestamp()))
    if after != before:
        _keep(connection, device, after)
    if after.since and not before.since:
        Incidents().open_in(connection, now, _incident(device, row.site))
        return True
    return False


def settle_in(connection: Connection, now: datetime, told_before: Container[str] | None = None) -> dict[str, Presence]:
    """What each identity that is or was doubled is to be told now: doubled ones, and those that no longer are, since
    it has become quiet or a person has closed the incident.

    Also those that are there and not in ``told_before``: this hub, killed or set back to an older copy of itself, may
    have told them of a double that it knows nothing of."""
    query = select(devices.c.id, devices.c.site, devices.c.runs, devices.c.online).where(~devices.c.revoked)
    told: dict[str, Presence] = {}
    for row in connection.execute(query).all():
        sight = sight_of(row.runs)
        if not sight.since:
            if told_before is not None and row.online and row.id not in told_before:
                told[row.id] = Presence(doubled=False, at=rfc3339(now), sentence="")
            continue
        later = forgive(sight) if _is_closed(connection, row.id) else settle(sight, now.timestamp())
        if later != sight:
            _keep(connection, row.id, later)
            _close(connection, row.id, now)
        told[row.id] = Presence(
            doubled=bool(later.since), at=rfc3339(now), sentence=sentence(row.site) if later.since else ""
        )
    return told


def is_doubled(runs: dict[str, Any]) -> bool:
    """Whether a device's row says that two boxes speak under its name."""
    return bool(runs.get("since"))


def sight_of(runs: dict[str, Any]) -> Sight:
    """The sight in a device's row."""
    return msgspec.convert(runs, Sight)


def sentence(site: str) -> str:
    """What is the matter and the way out, for people at the hub and on the boxes."""
    return (
        f"Two boxes speak under the identity of {site}: its disk was probably cloned. Neither updates itself until "
        f"one is gone. On the box that is to be another site, stop the agent and run: landreeve join TOKEN --again, "
        f"with a token of its own (landreeve-hub device token NEW-SITE)."
    )


def _incident(device: str, site: str) -> Raise:
    subject = {"device": device, "site": site}
    return Raise(f"cloned:{device}", KIND, "error", "two_sessions", sentence(site), subject)


def _is_closed(connection: Connection, device: str) -> bool:
    query = select(incidents.c.state).where(incidents.c.key == f"cloned:{device}")
    return connection.execute(query).scalar_one_or_none() == CLOSED


def _close(connection: Connection, device: str, now: datetime) -> None:
    query = select(incidents.c.id).where(incidents.c.key == f"cloned:{device}", incidents.c.state != CLOSED)
    found = connection.execute(query).scalar_one_or_none()
    if found is not None:
        Incidents().close_in(connection, now, found, "hub", "Only one box has spoken under this identity since.")


def _keep(connection: Connection, device: str, sight: Sight) -> None:
    runs = msgspec.to_builtins(sight)
    connection.execute(update(devices).where(devices.c.id == device).values(runs=runs))
