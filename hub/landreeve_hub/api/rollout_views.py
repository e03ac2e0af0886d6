"""Rollouts as the API shows them."""

from collections import Counter
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from landreeve_hub.rollout import book
from landreeve_hub.rollout.machine import decide, failures, in_flight, silent
from landreeve_hub.rollout.sight import see
from landreeve_hub.rollout.state import Back, Fleet, Member, Outcome, Rollout
from landreeve_hub.rollout.waiting import words

_NOT_BEGUN = frozenset({Outcome.WAITING, Outcome.SKIPPED})


def active_rows(connection: Connection, now: datetime) -> list[dict[str, Any]]:
    """A `RolloutRow` for each rollout that has not ended."""
    return [row(connection, kept, now) for kept in book.listed(connection, active=True)]


def rows(connection: Connection, now: datetime, model: str = "") -> list[dict[str, Any]]:
    """A `RolloutRow` for each rollout, newest first."""
    kept = book.listed(connection, model=model)
    sights = {name: see(connection, name) for name in {k.rollout.model for k in kept}}
    return [_row(connection, k, sights[k.rollout.model], now) for k in kept]


def row(connection: Connection, kept: book.Kept, now: datetime) -> dict[str, Any]:
    """One rollout: waves, gates with their values, what it waits for, and its log."""
    return _row(connection, kept, see(connection, kept.rollout.model), now)


def _row(connection: Connection, kept: book.Kept, sight: Fleet, now: datetime) -> dict[str, Any]:
    rollout = kept.rollout
    waiting = decide(rollout, sight, now).waiting
    return {
        "id": rollout.id,
        "model": rollout.model,
        "version": rollout.version,
        "release": rollout.digest,
        "from_version": _from_version(rollout, sight),
        "state": rollout.state.value,
        "wave": rollout.wave,
        "waves": waves(rollout, sight),
        "gates": gates(rollout),
        "waiting": [words(item) for item in waiting],
        "cause": rollout.cause,
        "sentence": rollout.sentence,
        "created": kept.created,
        "created_by": kept.created_by,
        "approved_by": kept.approved_by,
        "log": book.log_of(connection, rollout.id),
    }


def waves(rollout: Rollout, sight: Fleet) -> list[dict[str, Any]]:
    """How each wave stands, and every device in it."""
    shown = []
    for number in range(max(m.wave for m in rollout.members) + 1):
        members = [m for m in rollout.members if m.wave == number]
        name = rollout.plan.waves[number].name if number < len(rollout.plan.waves) else ""
        shown.append(
            {
                "name": name or ("Canary" if number == 0 and len(rollout.plan.waves) > 1 else f"Wave {number + 1}"),
                "total": len(members),
                "committed": sum(m.outcome is Outcome.COMMITTED and m.back is Back.NO for m in members),
                "failed": sum(m.outcome is Outcome.FAILED for m in members),
                "in_flight": sum(m.outcome is Outcome.ORDERED and m.back is Back.NO for m in members),
                "devices": [_member(m, sight) for m in members],
            }
        )
    return shown


def _member(member: Member, sight: Fleet) -> dict[str, str]:
    fact = sight.get(member.device)
    report = fact.report if fact else None
    flying = member.outcome is Outcome.ORDERED and member.back is Back.NO
    state = member.stage.lower() if flying and member.stage else member.back.value or member.outcome.value
    sentence = report.sentence if flying and report and report.state == member.stage else member.sentence
    return {"id": member.device, "site": member.site, "state": state, "sentence": sentence}


def gates(rollout: Rollout) -> list[dict[str, Any]]:
    """Each gate with its limit and its value now, and whether it holds."""
    gate = rollout.plan.gate
    wave = [m for m in rollout.members if m.wave == rollout.wave]
    committed = sum(m.outcome is Outcome.COMMITTED for m in wave)
    least = min(gate.min_committed, len(wave))
    limits = (
        ("failed devices", max(gate.max_failures, rollout.accepted_failures), len(failures(rollout))),
        ("silent devices", max(gate.max_silent, rollout.accepted_silent), len(silent(rollout))),
        ("updating at the same time", gate.max_in_flight, len(in_flight(rollout))),
    )
    shown: list[dict[str, Any]] = [
        {"name": name, "limit": limit, "value": value, "holds": value <= limit} for name, limit, value in limits
    ]
    shown.append({"name": "committed in this wave", "limit": least, "value": committed, "holds": committed >= least})
    return shown


def _from_version(rollout: Rollout, sight: Fleet) -> str:
    """The version most sites come from."""
    versions = Counter(
        m.prior_version or (sight[m.device].running_version if m.outcome in _NOT_BEGUN and m.device in sight else "")
        for m in rollout.members
    )
    versions.pop("", None)
    return versions.most_common(1)[0][0] if versions else ""


def waiting_by_device(connection: Connection, now: datetime) -> dict[str, str]:
    """What each device of a rollout under way does, in words."""
    found = {}
    for kept in book.listed(connection, active=True):
        sight = see(connection, kept.rollout.model)
        for member in in_flight(kept.rollout):
            found[member.device] = _member(member, sight)["sentence"] or f"ordered to take {kept.rollout.version}"
    return found
