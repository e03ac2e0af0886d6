"""Which releases somebody still needs, read from the tables, each with the reason in words.

Documents of rollouts, devices and runs are searched for anything that looks like a digest: a new member in one of
them must not make the collector forget a release.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Select, select

from landreeve_hub.learning.runs import OPEN
from landreeve_hub.rollout.state import FINAL
from landreeve_hub.store import tables

# May still be approved, or is.
STANDING = ("draft", "awaiting", "approved")
_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
Found = Iterator[tuple[str, str]]


def mentioned(*texts: object) -> Iterator[str]:
    """Every digest in texts and documents.

    >>> list(mentioned({"prior": "a" * 64}, "b" * 64, "c" * 65))[1][:3]
    'bbb'
    """
    for text in texts:
        yield from _DIGEST.findall(text if isinstance(text, str) else json.dumps(text))


def _registered(connection: Connection) -> Found:
    table = tables.releases
    for row in connection.execute(select(table).where(table.c.state.in_(STANDING))):
        yield row.digest, f"{row.model} {row.version} is {row.state}"


def _tagged(connection: Connection) -> Found:
    for row in connection.execute(select(tables.aliases)):
        yield row.digest, f"tag {row.alias} of {row.model}"


def _rolling(connection: Connection) -> Found:
    """Of rollouts that are not over or still watched: where they lead, and where each device comes from."""
    table, members = tables.rollouts, tables.rollout_members
    over = table.c.state.in_([state.value for state in FINAL]) & (table.c.watch_until == "")
    for row in connection.execute(select(table).where(~over)):
        for digest in mentioned(row.digest, row.doc):
            yield digest, f"rollout {row.id} is {row.state}"
        for member in connection.execute(select(members.c.doc).where(members.c.rollout == row.id)):
            for digest in mentioned(member.doc):
                yield digest, f"a device of rollout {row.id} may return to it"


def _ordered(connection: Connection) -> Found:
    """What devices are to run, and what they came from: a rollout that is over can still be taken back."""
    table, members = tables.assignments, tables.rollout_members
    way = (members.c.device == table.c.device) & (members.c.rollout == table.c.rollout)
    query = select(table.c.device, table.c.digest, members.c.doc).outerjoin(members, way)
    for row in connection.execute(_living(query, table.c.device)):
        for digest in mentioned(row.digest, row.doc or {}):
            yield digest, f"{row.device} is ordered to run it, or came from it"


def _on_devices(connection: Connection) -> Found:
    devices, updates = tables.devices, tables.updates
    for row in connection.execute(_living(select(updates.c.device, updates.c.release), updates.c.device)):
        for digest in mentioned(row.release):
            yield digest, f"{row.device} was last told to install it"
    for row in connection.execute(select(devices.c.id, devices.c.doc).where(~devices.c.revoked)):
        for digest in mentioned(row.doc):
            yield digest, f"{row.id} runs it or may return to it"
        if not _tells_all(row.doc):
            for digest in _ever(connection, row.id):
                yield digest, f"{row.id} may hold it"


def _tells_all(doc: dict[str, Any]) -> bool:
    """Whether the device said of every model what it keeps to return to; older agents never do."""
    models = doc.get("models") or ()
    return bool(models) and all(model.get("keeps") for model in models)


def _ever(connection: Connection, device: str) -> Iterator[str]:
    """Whatever a device was ever led to or from by a rollout."""
    rollouts, members = tables.rollouts, tables.rollout_members
    query = select(rollouts.c.digest, members.c.doc).join(members, members.c.rollout == rollouts.c.id)
    for row in connection.execute(query.where(members.c.device == device)):
        yield from mentioned(row.digest, row.doc)


def _training(connection: Connection) -> Found:
    table = tables.runs
    for row in connection.execute(select(table).where(table.c.state.in_(OPEN))):
        for digest in mentioned(row.digest, row.request):
            yield digest, f"training {row.id} is {row.state}"


def _living(query: Select[Any], device: Any) -> Select[Any]:
    """Without boxes that were thrown out: those come back as others, with nothing."""
    gone = select(tables.devices.c.id).where(tables.devices.c.revoked)
    return query.where(device.not_in(gone))


ROOMS = (_registered, _tagged, _rolling, _ordered, _on_devices, _training)


def needed(connection: Connection, rooms: Iterable[Callable[[Connection], Found]] = ROOMS) -> dict[str, str]:
    """Why each release is needed that the tables speak of; releases that are signed come on top."""
    reasons: dict[str, str] = {}
    for room in rooms:
        for digest, why in room(connection):
            reasons.setdefault(digest, why)
    return reasons
