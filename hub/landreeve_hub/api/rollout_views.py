"""Rollouts as the API shows them."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
import msgspec.structs
from sqlalchemy import Connection, func, select

from landreeve_hub.rollout import book
from landreeve_hub.rollout.drifting import Pool
from landreeve_hub.rollout.gates import Figure, by_share, failures, figures, silent
from landreeve_hub.rollout.live import firsts, surroundings
from landreeve_hub.rollout.machine import decide, watch_end
from landreeve_hub.rollout.observing import in_flight
from landreeve_hub.rollout.roster import Back, Member, Outcome
from landreeve_hub.rollout.sight import see
from landreeve_hub.rollout.state import FINAL, Fleet, Rollout
from landreeve_hub.rollout.trials import summary, trials
from landreeve_hub.rollout.waiting import words
from landreeve_hub.store import tables

_NOT_BEGUN = frozenset({Outcome.WAITING, Outcome.SKIPPED})
NOBODY: Fleet = {}
NO_POOLS: Mapping[str, Pool] = {}
COLUMNS = 3


def active_rows(connection: Connection, now: datetime, pools: Mapping[str, Pool] = NO_POOLS) -> list[dict[str, Any]]:
    """A `RolloutRow` for each rollout that has not ended."""
    going = book.listed(connection, active=True)
    return [_row(connection, kept, now, [other.rollout for other in going], pools) for kept in going]


def rows(
    connection: Connection, now: datetime, model: str = "", pools: Mapping[str, Pool] = NO_POOLS
) -> list[dict[str, Any]]:
    """A `RolloutRow` for each rollout, newest first; ``pools`` are the windows by which some are judged."""
    kept = book.listed(connection, model=model)
    going = [k.rollout for k in book.listed(connection, active=True)]
    return [_row(connection, k, now, going, pools) for k in kept]


def row(connection: Connection, kept: book.Kept, now: datetime, pools: Mapping[str, Pool] = NO_POOLS) -> dict[str, Any]:
    """One rollout: waves, gates with their values, what it waits for, and its log."""
    return _row(connection, kept, now, [k.rollout for k in book.listed(connection, active=True)], pools)


def _row(
    connection: Connection,
    kept: book.Kept,
    now: datetime,
    going: Collection[Rollout],
    pools: Mapping[str, Pool] = NO_POOLS,
) -> dict[str, Any]:
    rollout = kept.rollout
    sight, waiting = NOBODY, list[str]()
    if rollout.state not in FINAL or _watched(rollout, now):
        sight = see(connection, rollout, now, rows=True)
        others = [other for other in going if other.id != rollout.id]
        around = surroundings(connection, rollout, others, now)
        around = replace(around, drift=pools.get(rollout.id), first=tuple(firsts(connection, rollout, others, {})))
        waiting = [words(item) for item in decide(rollout, sight, now, around).waiting]
    return {
        "id": rollout.id,
        "kind": rollout.kind,
        "of": rollout.of,
        "model": rollout.model,
        "version": rollout.version,
        "release": rollout.digest,
        "from_version": _from_version(rollout, sight),
        "state": rollout.state.value,
        "wave": rollout.wave,
        "waves": waves(rollout, sight),
        "gates": gates(rollout, pools.get(rollout.id)),
        "after": list(rollout.plan.after),
        "plan": asked(rollout.plan),
        "waiting": waiting,
        **_trials(rollout, sight),
        "cause": rollout.cause,
        "sentence": rollout.sentence,
        "why": rollout.why,
        "risk": rollout.risk,
        "created": kept.created,
        "created_by": kept.created_by,
        "approved_by": kept.approved_by,
        "log": book.log_of(connection, rollout.id, 500),
    }


def _trials(rollout: Rollout, sight: Fleet) -> dict[str, Any]:
    """How many devices on probation are at each stage of the strategy; in words where it has more than one stage."""
    strategy, found = rollout.plan.strategy, trials(rollout, sight)
    staged = strategy is not None and strategy.kind != "direct"
    stages = [{"stage": trial.at.value, "share": trial.share, "devices": count} for trial, count in found]
    return {"stages": stages, "on_trial": summary(found) if staged else ""}


def asked(value: Any) -> Any:
    """What of a plan is not as usual.

    >>> from landreeve_hub.rollout.policy import parse_plan
    >>> asked(parse_plan({"waves": [{"share": 0.1}, {"rest": True}], "gate": {"max_failures": 2, "max_silent": 0}}))
    {'waves': [{'share': 0.1}, {'rest': True}], 'gate': {'max_failures': 2}}
    """
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        return {f.name: asked(held) for f in fields if (held := getattr(value, f.name)) != _usual(f)}
    return [asked(one) for one in value] if isinstance(value, tuple) else value


def _usual(field: msgspec.structs.FieldInfo) -> Any:
    return (
        field.default_factory()
        if field.default is msgspec.NODEFAULT and callable(field.default_factory)
        else field.default
    )


def _watched(rollout: Rollout, now: datetime) -> bool:
    end = watch_end(rollout)
    return end is not None and end > now


def waves(rollout: Rollout, sight: Fleet) -> list[dict[str, Any]]:
    """How each wave stands, and every device in it."""
    by_wave: dict[int, list[Member]] = {number: [] for number in range(rollout.members.last_wave + 1)}
    for member in rollout.members.values():
        by_wave[member.wave].append(member)
    shown = []
    for number, members in by_wave.items():
        name = rollout.plan.waves[number].name if number < len(rollout.plan.waves) else ""
        shown.append(
            {
                "name": name or ("Canary" if number == 0 and len(rollout.plan.waves) > 1 else f"Wave {number + 1}"),
                "total": len(members),
                "committed": sum(m.outcome is Outcome.COMMITTED and m.back is Back.NO for m in members),
                "failed": sum(m.outcome is Outcome.FAILED for m in members),
                "silent": sum(m.outcome is Outcome.SILENT for m in members),
                "excluded": sum(m.outcome is Outcome.EXCLUDED for m in members),
                "in_flight": sum(m.flying for m in members),
                "devices": [_explained(_member(m, sight), m, rollout) for m in members],
            }
        )
    return shown


def _member(member: Member, sight: Fleet) -> dict[str, str]:
    fact = sight.get(member.device)
    report = fact.report if fact else None
    state = member.stage.lower() if member.flying and member.stage else member.back.value or member.outcome.value
    sentence = report.sentence if member.flying and report and report.state == member.stage else member.sentence
    return {"id": member.device, "site": member.site, "state": state, "sentence": sentence}


def _explained(shown: dict[str, str], member: Member, rollout: Rollout) -> dict[str, str]:
    """A device that goes back for no reason of its own goes back for the rollout's."""
    return shown if shown["sentence"] or member.back is Back.NO else {**shown, "sentence": rollout.sentence}


def gates(rollout: Rollout, drift: Pool | None = None) -> list[dict[str, Any]]:
    """Each gate with its limit and its value now, and whether it holds; of drift the columns that are farthest."""
    if rollout.kind != "update":
        return []
    gate, members = rollout.plan.gate, rollout.members
    size = members.size(rollout.wave)
    committed = members.count(Outcome.COMMITTED, wave=rollout.wave)
    least = min(gate.min_committed, size)
    limits = (
        (
            "failed devices",
            max(gate.max_failures, rollout.accepted_failures),
            len(failures(rollout)),
            "max_failed_share",
        ),
        ("silent devices", max(gate.max_silent, rollout.accepted_silent), len(silent(rollout)), "max_silent_share"),
    )
    shown: list[dict[str, Any]] = []
    heard = members.count(Outcome.COMMITTED, Outcome.FAILED)
    for name, limit, value, share in limits:
        part = getattr(gate, share)
        if part is not None and by_share(rollout, part):
            of = heard + (len(silent(rollout)) if share == "max_silent_share" else 0)
            rate = value / of if of else 0.0
            shown.append({"name": f"share of {name}", "limit": part, "value": rate, "holds": rate <= part})
        else:
            shown.append({"name": name, "limit": limit, "value": value, "holds": value <= limit})
    flying = len(members.flying)
    shown += [
        {
            "name": "updating at the same time",
            "limit": gate.max_in_flight,
            "value": flying,
            "holds": flying <= gate.max_in_flight,
        },
        {"name": "committed in this wave", "limit": least, "value": committed, "holds": committed >= least},
    ]
    return shown + [
        {
            "name": figure.name,
            "limit": figure.limit,
            "value": figure.bounds.estimate if figure.bounds.devices else None,
            "low": _known(figure.bounds.low),
            "high": _known(figure.bounds.high),
            "devices": figure.bounds.devices,
            "holds": figure.bounds.devices >= figure.need and figure.bounds.estimate <= figure.limit,
        }
        for figure in _shown(figures(rollout, drift))
    ]


def _known(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _shown(found: list[Figure]) -> list[Figure]:
    columns = [figure for figure in found if figure.name.startswith("drift ")]
    return [figure for figure in found if figure not in columns[COLUMNS:]]


def _from_version(rollout: Rollout, sight: Fleet) -> str:
    """The version most sites come from."""
    versions = Counter(
        m.prior_version or (sight[m.device].running_version if m.outcome in _NOT_BEGUN and m.device in sight else "")
        for m in rollout.members.values()
    )
    versions.pop("", None)
    return versions.most_common(1)[0][0] if versions else ""


def ended(connection: Connection, limit: int, model: str = "") -> list[dict[str, Any]]:
    """Rollouts that are over, newest first, without reading their members: all waves as one."""
    table = tables.rollouts
    query = select(table).where(table.c.state.in_([state.value for state in FINAL])).order_by(table.c.id.desc())
    found = connection.execute((query.where(table.c.model == model) if model else query).limit(limit)).all()
    counts = _outcomes(connection, [row.id for row in found])
    return [_ended(connection, row, counts.get(row.id, Counter())) for row in found]


def _outcomes(connection: Connection, ids: list[str]) -> dict[str, Counter[str]]:
    """How many members of each rollout came to which outcome; one that went back counts as that."""
    m = tables.rollout_members.c
    query = select(m.rollout, m.outcome, m.back, func.count()).where(m.rollout.in_(ids))
    found: dict[str, Counter[str]] = {}
    for rollout, outcome, back, number in connection.execute(query.group_by(m.rollout, m.outcome, m.back)):
        found.setdefault(rollout, Counter())[outcome if back == Back.NO.value else back] += number
    return found


def _ended(connection: Connection, row: Any, counts: Counter[str]) -> dict[str, Any]:
    m = tables.rollout_members.c
    some = connection.execute(select(m.doc).where(m.rollout == row.id).limit(20)).scalars()
    versions = Counter(str(doc.get("prior_version") or "") for doc in some)
    versions.pop("", None)
    told = {name: str(row.doc.get(name) or "") for name in ("of", "cause", "sentence", "why", "risk")}
    wave = {"name": "", "total": counts.total(), "in_flight": 0}
    wave |= {name: counts[name] for name in ("committed", "failed", "silent", "excluded")}
    about = {name: getattr(row, name) for name in ("id", "kind", "model", "version", "state")}
    by = {name: getattr(row, name) for name in ("created", "created_by", "approved_by")}
    version = versions.most_common(1)[0][0] if versions else ""
    return {**about, **told, **by, "release": row.digest, "from_version": version, "waves": [wave]}


def brief(shown: Mapping[str, Any]) -> dict[str, Any]:
    """A `RolloutRow` without its devices and its log, which are as long as the fleet is large."""
    waves = [{name: value for name, value in wave.items() if name != "devices"} for wave in shown["waves"]]
    return {**{name: value for name, value in shown.items() if name != "log"}, "waves": waves}


def waiting_by_device(connection: Connection, now: datetime) -> dict[str, str]:
    """What each device of a rollout under way does, in words."""
    found = {}
    for kept in book.listed(connection, active=True):
        flying = in_flight(kept.rollout)
        sight = see(connection, kept.rollout, now, [m.device for m in flying])
        for member in flying:
            found[member.device] = _member(member, sight)["sentence"] or f"ordered to take {kept.rollout.version}"
    return found


def record(connection: Connection, kept: book.Kept, audited: list[dict[str, Any]]) -> dict[str, Any]:
    """The change record: who asked for what and why, how risky it is and how it is taken back, who approved it, what
    happened when, and what came of it for every device."""
    rollout = kept.rollout
    counts = Counter(m.outcome.value for m in rollout.members.values())
    return {
        "format": "landreeve-change/1",
        "id": rollout.id,
        "kind": rollout.kind,
        "of": rollout.of,
        "what": {"model": rollout.model, "version": rollout.version, "release": rollout.digest},
        "who": kept.created_by,
        "when": kept.created,
        "why": rollout.why,
        "risk": rollout.risk,
        "rollback_plan": rollout.rollback_plan or _STANDARD_WAY_BACK,
        "approvals": [entry for entry in audited if entry["action"] == "rollout.approve"],
        "actions": audited,
        "plan": msgspec.to_builtins(rollout.plan),
        "timeline": book.log_of(connection, rollout.id),
        "outcome": {
            "state": rollout.state.value,
            "cause": rollout.cause,
            "sentence": rollout.sentence,
            "devices": dict(counts),
        },
        "devices": [_outcome(member) for member in rollout.members.values()],
    }


_STANDARD_WAY_BACK = "Every device keeps its last good version on its disk and returns to it by itself or when ordered."


def _outcome(member: Member) -> Mapping[str, Any]:
    names = ("device", "site", "wave", "prior_version", "cause", "sentence", "attempt")
    found = {name: getattr(member, name) for name in names}
    return {**found, "outcome": member.outcome.value, "back": member.back.value}
