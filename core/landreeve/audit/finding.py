"""Which entries somebody looks for: who, what, about what, when. Newest first.

People's names stand in a log as commitments, so an entry about somebody is found through its subject, and only by the
whole name; everything else by how it begins.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from landreeve.audit import ledger
from landreeve.audit.entry import Entry
from landreeve.audit.shelf import Shelf

DECISIONS = ("allowed", "denied")


class Wanted(msgspec.Struct, frozen=True):
    """What entries must have in common; empty members ask for nothing. ``since`` and ``until`` are a day
    (``2026-01-31``, both included) or an RFC 3339 moment (``until`` is not included), in UTC where nothing else is
    said."""

    actor: str = ""
    action: str = ""
    object: str = ""
    decision: str = ""
    since: str = ""
    until: str = ""


def newest(shelf: Shelf, wanted: Wanted, before: int, limit: int) -> list[Entry]:
    """Entries numbered below ``before`` (0: all), newest first, with what is personal in them readable.

    ValueError names the member of ``wanted`` that cannot be used. O(log) for what is rare, O(limit) for what is not.
    """
    asked = dict(_conditions(shelf, wanted))
    if before:
        asked["seq < :before"] = {"before": before}
    where = f"WHERE {' AND '.join(asked)}" if asked else ""
    values = {name: value for part in asked.values() for name, value in part.items()}
    rows = shelf.run(f"SELECT seq FROM audit {where} ORDER BY seq DESC LIMIT :limit", limit=limit, **values)  # noqa: S608 - literals below
    numbers = [int(row[0]) for row in rows]
    found = [entry for first, last in ledger.runs(numbers[::-1]) for entry in shelf.page(first, last)]
    return ledger.revealed(shelf, found[::-1])


def _conditions(shelf: Shelf, wanted: Wanted) -> Iterator[tuple[str, dict[str, Any]]]:
    if wanted.action:
        yield "substr(action, 1, :action_n) = :action", {"action": wanted.action, "action_n": len(wanted.action)}
    for member in ("actor", "object"):
        if text := getattr(wanted, member):
            yield _named(shelf, member, text)
    if wanted.decision:
        if wanted.decision not in DECISIONS:
            raise ValueError(f"decision: {wanted.decision[:40]!r} is neither {' nor '.join(DECISIONS)}")
        yield "decision = :decision", {"decision": wanted.decision}
    if wanted.since:
        yield "at >= :since", {"since": _edge("since", wanted.since, days=0)}
    if wanted.until:
        yield "at < :until", {"until": _edge("until", wanted.until, days=1)}


def _named(shelf: Shelf, member: str, text: str) -> tuple[str, dict[str, Any]]:
    plain = f"substr({member}, 1, :{member}_n) = :{member}"
    values: dict[str, Any] = {member: text, f"{member}_n": len(text)}
    subject = shelf.subject(text)
    if subject is None:
        return plain, values
    sealed = f"seq IN (SELECT seq FROM audit_private WHERE subject = :{member}_id AND member = '{member}')"  # noqa: S608 - one of two literals
    return f"({plain} OR {sealed})", {**values, f"{member}_id": subject.id}


def _edge(name: str, text: str, *, days: int) -> str:
    """The beginning of a moment as entries write it; ``days`` are added to a bare day."""
    try:
        if len(text) == len("2026-01-31"):
            return (date.fromisoformat(text) + timedelta(days=days)).isoformat()
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{name}: {text[:40]!r} is neither a day (2026-01-31) nor a moment of RFC 3339") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%S")
