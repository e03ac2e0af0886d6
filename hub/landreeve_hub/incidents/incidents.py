"""Incidents: opened once for each key, taken note of by a person, closed with a reason."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from landreeve.wire.messages import Event, Fact
from sqlalchemy import Connection, func, insert, select, update

from landreeve_hub.incidents.rules import CRASHES_WITHIN_S, Raise, crash_loop, incident_of
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339

RESTARTED = "worker.restarted"
OPEN, ACKNOWLEDGED, CLOSED = "open", "acknowledged", "closed"
_WEIGHT = {"info": 0, "warning": 1, "error": 2}


class UnknownIncidentError(LookupError):
    """No incident has that id."""


class IncidentStateError(ValueError):
    """The incident is in a state in which that cannot be done."""


class Incidents:
    """All within the caller's transaction, so that an incident and what it reports are kept together."""

    def open_in(self, connection: Connection, now: datetime, raised: Raise) -> str:
        """The id of the incident with that key: a new one, the one still open, or the closed one opened again. One
        that is open has the words it was opened with until it becomes worse."""
        found = connection.execute(select(tables.incidents).where(tables.incidents.c.key == raised.key)).first()
        if found is None:
            return self._insert(connection, now, raised)
        worse = _WEIGHT.get(raised.severity, 0) > _WEIGHT.get(found.severity, 0)
        if found.state == CLOSED or worse:
            said = {name: getattr(raised, name) for name in ("kind", "severity", "cause", "sentence", "subject")}
            own = tables.incidents.c.id == found.id
            connection.execute(update(tables.incidents).where(own).values(state=OPEN, closed="", **said))
            _log(connection, found.id, now, ("hub", "reopened" if found.state == CLOSED else "worse"), raised.sentence)
        return str(found.id)

    def acknowledge_in(self, connection: Connection, now: datetime, incident: str, actor: str, note: str = "") -> None:
        """Someone has seen it and deals with it."""
        self._move(connection, incident, {OPEN}, ACKNOWLEDGED, "")
        _log(connection, incident, now, (actor, "acknowledged"), note or f"{actor} takes care of it.")

    def close_in(self, connection: Connection, now: datetime, incident: str, actor: str, note: str = "") -> None:
        """It is over."""
        self._move(connection, incident, {OPEN, ACKNOWLEDGED}, CLOSED, rfc3339(now))
        _log(connection, incident, now, (actor, "closed"), note or f"{actor} closed it.")

    def close_key_in(self, connection: Connection, now: datetime, key: str, actor: str, note: str) -> None:
        """The incident with that key is over, if there is one that is not closed."""
        query = select(tables.incidents.c.id).where(tables.incidents.c.key == key, tables.incidents.c.state != CLOSED)
        if (incident := connection.execute(query).scalar()) is not None:
            self.close_in(connection, now, incident, actor, note)

    def _insert(self, connection: Connection, now: datetime, raised: Raise) -> str:
        count = connection.execute(select(func.count()).select_from(tables.incidents)).scalar_one()
        incident = f"i-{count + 1:05d}"
        row = {
            "id": incident,
            "kind": raised.kind,
            "key": raised.key,
            "state": OPEN,
            "opened": rfc3339(now),
            "severity": raised.severity,
            "cause": raised.cause,
            "sentence": raised.sentence,
            "subject": raised.subject,
        }
        connection.execute(insert(tables.incidents).values(row))
        _log(connection, incident, now, ("hub", "opened"), raised.sentence)
        return incident

    def _move(self, connection: Connection, incident: str, allowed: set[str], state: str, closed: str) -> None:
        where = tables.incidents.c.id == incident
        found = connection.execute(select(tables.incidents.c.state).where(where)).scalar_one_or_none()
        if found is None:
            raise UnknownIncidentError(f"incident: {incident[:40]!r} is unknown")
        if found not in allowed:
            raise IncidentStateError(f"incident {incident} is {found} already")
        connection.execute(update(tables.incidents).where(where).values(state=state, closed=closed))


def _log(connection: Connection, incident: str, now: datetime, by: tuple[str, str], sentence: str) -> None:
    actor, action = by
    row = {"incident": incident, "at": rfc3339(now), "actor": actor, "action": action, "sentence": sentence}
    connection.execute(insert(tables.incident_log).values(row))


def listed(connection: Connection, state: str = "", limit: int | None = None) -> list[dict[str, Any]]:
    """Incidents, newest first; at most ``limit``."""
    query = select(tables.incidents).order_by(tables.incidents.c.id.desc()).limit(limit)
    if state:
        query = query.where(tables.incidents.c.state == state)
    return [dict(row) for row in connection.execute(query).mappings()]


def shown(connection: Connection, incident: str) -> dict[str, Any]:
    """One incident with its log; `UnknownIncidentError`."""
    row = connection.execute(select(tables.incidents).where(tables.incidents.c.id == incident)).mappings().first()
    if row is None:
        raise UnknownIncidentError(f"incident: {incident[:40]!r} is unknown")
    log = tables.incident_log
    lines = connection.execute(
        select(log.c.at, log.c.actor, log.c.action, log.c.sentence).where(log.c.incident == incident).order_by(log.c.n)
    ).mappings()
    return {**row, "log": [dict(line) for line in lines]}


class IncidentWatch:
    """Opens incidents from facts, in the transaction that accepts them."""

    def __init__(self, incidents: Incidents, clock: Callable[[], datetime]) -> None:
        self._incidents = incidents
        self._clock = clock

    def apply(self, connection: Connection, device: str, fact: Fact) -> None:
        """An applier of the ingest, for every type of fact; most are no incident, and cost nothing."""
        restarted = isinstance(fact.body, Event) and fact.body.name == RESTARTED
        if not restarted and incident_of(fact.body, device, device) is None:
            return
        site = connection.execute(
            select(tables.devices.c.site).where(tables.devices.c.id == device)
        ).scalar_one_or_none()
        raised = incident_of(fact.body, device, site or device)
        if isinstance(fact.body, Event) and fact.body.name == RESTARTED:
            raised = crash_loop(_restarts(connection, device, fact.at), fact.body, device, site or device)
        if raised is not None:
            self._incidents.open_in(connection, self._clock(), raised)


def _restarts(connection: Connection, device: str, at: str) -> int:
    """Restarts of the device's worker within the span before ``at``, by the device's own clock."""
    since = rfc3339(parse_rfc3339(at) - timedelta(seconds=CRASHES_WITHIN_S))
    events = tables.events
    own = (events.c.device == device) & (events.c.name == RESTARTED) & (events.c.at >= since)
    return connection.execute(select(func.count()).select_from(events).where(own)).scalar_one()
