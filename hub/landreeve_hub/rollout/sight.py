"""The fleet as the rollout machine sees it, read from the store: all of it once, then the devices that changed."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec
from landreeve.wire.strategy import TrialStage
from sqlalchemy import Connection, Row, Table, case, func, or_, select, tuple_

from landreeve_hub.fleet import health
from landreeve_hub.fleet.filter import Row as Filtered
from landreeve_hub.fleet.sessions import is_doubled
from landreeve_hub.ingest.minutes import read_rows
from landreeve_hub.rollout.blame import BY_A_PERSON, NOT_THE_RELEASE, WITH_PARENT
from landreeve_hub.rollout.drifting import Pool, Window
from landreeve_hub.rollout.roster import Outcome, Told
from landreeve_hub.rollout.state import DeviceFact, Quality, Report, Rollout
from landreeve_hub.store import tables
from landreeve_hub.store.moment import parse_rfc3339, rfc3339

PIECE = 400
MOST_FIGURE = 1e15
DOUBLED = "two boxes speak under its name"
# States of a device, set elsewhere, in which nothing new is ordered for it.
SUSPECT = {"suspect": "someone marked it as not to be trusted"}


def fleet_sites(connection: Connection) -> dict[str, str]:
    """The site of each device that belongs to the fleet."""
    devices = tables.devices
    rows = connection.execute(select(devices.c.id, devices.c.site).where(~devices.c.revoked))
    return {row.id: row.site for row in rows}


def see(
    connection: Connection,
    rollout: Rollout,
    now: datetime,
    devices: Collection[str] | None = None,
    *,
    rows: bool = False,
) -> dict[str, DeviceFact]:
    """What is known of the rollout's devices, or of those among ``devices``; one that was removed is absent.

    ``rows`` also reads how far probations have come, which only people ask for.
    """
    wanted = [d for d in (rollout.members if devices is None else devices) if d in rollout.members]
    found: dict[str, DeviceFact] = {}
    for piece in _pieces(wanted):
        found |= _see(connection, rollout, piece, now, rows=rows)
    return found


def _pieces(devices: list[str]) -> Iterator[list[str]]:
    return (devices[i : i + PIECE] for i in range(0, len(devices), PIECE))


def _see(
    connection: Connection, rollout: Rollout, devices: list[str], now: datetime, *, rows: bool
) -> dict[str, DeviceFact]:
    model, table = rollout.model, tables.devices
    found = connection.execute(select(table).where(table.c.id.in_(devices), ~table.c.revoked)).all()
    assigned = _of(connection, tables.assignments, model, devices)
    reports = _of(connection, tables.updates, model, devices)
    newest = tables.desired
    query = select(newest.c.device, newest.c.generation, newest.c.digest).where(newest.c.device.in_(devices))
    desired = {row.device: row for row in connection.execute(query)}
    quality = _quality(connection, rollout, devices)
    returns = _returns(connection, rollout, devices, now)
    facts = {}
    for row in found:
        report = _report(connection, row, reports.get(row.id), rows=rows)
        held, served, made = assigned.get(row.id), serving(row.doc, model), desired.get(row.id)
        good, good_version = _good(reports.get(row.id), int(row.doc.get("generation", 0)))
        facts[row.id] = DeviceFact(
            id=row.id,
            site=row.site,
            online=row.online,
            last_seen=parse_rfc3339(row.last_seen) if row.last_seen else None,
            running=str(served.get("release", "")),
            running_version=str(served.get("version", "")),
            assigned=held.digest if held else "",
            assigned_version=held.version if held else "",
            generation=int(row.doc.get("generation", 0)),
            desired=made.generation if made else 0,
            report=report,
            labels=row.labels,
            features=tuple(row.features.split()),
            suspect=DOUBLED if is_doubled(row.runs) else SUSPECT.get(row.state, ""),
            quality=quality.get(row.id),
            returns=returns.get(row.id, 0),
            document=str(row.doc.get("document", "")),
            newest=made.digest if made else "",
            assigned_by=held.rollout if held else "",
            good=good,
            good_version=good_version,
        )
    return facts


def _good(report: Row[Any] | None, generation: int) -> tuple[str, str]:
    """What the newest report says the device returns to, unless its state obeys a newer order than that report's."""
    if report is None or report.generation < generation:
        return "", ""
    return str(report.good), str(report.good_version)


def _of(connection: Connection, table: Table, model: str, devices: list[str]) -> dict[str, Row[Any]]:
    rows = connection.execute(select(table).where(table.c.model == model, table.c.device.in_(devices)))
    return {row.device: row for row in rows}


def _quality(connection: Connection, rollout: Rollout, devices: list[str]) -> dict[str, Quality]:
    """The newest window of the release on each device."""
    windows = tables.windows
    own = (windows.c.model == rollout.model) & (windows.c.release == rollout.digest) & windows.c.device.in_(devices)
    extent = (func.max(windows.c.window).label("window"), func.min(windows.c.window).label("first"))
    newest = (select(windows.c.device, *extent).where(own).group_by(windows.c.device)).subquery()
    on = (windows.c.device == newest.c.device) & (windows.c.window == newest.c.window)
    query = select(windows.c.device, windows.c.report, windows.c.window, windows.c.rows, newest.c.first)
    query = query.join(newest, on).where(own)
    found = {}
    for row in connection.execute(query):
        verdict, sentence = str(row.report.get("verdict", "")), str(row.report.get("sentence", ""))
        found[row.device] = Quality(rollout.digest, verdict, sentence, row.window, row.first, row.rows)
    return found


def pooled(connection: Connection, rollout: Rollout, pool: Pool, facts: Mapping[str, DeviceFact]) -> Pool:
    """The pool with the newest windows of these devices."""
    windows, read = tables.windows, dict[str, Window | None]()
    for piece in _pieces(sorted(facts)):
        wanted = [(d, quality.window) for d in piece if (quality := facts[d].quality) is not None]
        own = (windows.c.model == rollout.model) & tuple_(windows.c.device, windows.c.window).in_(wanted)
        read |= dict.fromkeys(piece)
        for row in connection.execute(select(windows.c.device, windows.c.report).where(own)) if wanted else ():
            quality = facts[row.device].quality
            if quality is not None:
                read[row.device] = pool.read(quality.window, quality.first, row.report.get("sketches") or {})
    return pool.put(read)


def _returns(connection: Connection, rollout: Rollout, devices: list[str], now: datetime) -> dict[str, int]:
    """How often this very release went back on each device within the ping-pong window: another release is another
    question, and a site that keeps its own model against three challengers is right to be asked a fourth time. A full
    disk or the like is no answer of the release at all, and what a person took back none of it either."""
    members, rollouts = tables.rollout_members, tables.rollouts
    parents = rollouts.alias()
    own, ended, of_parent = (func.coalesce(t.c.doc["cause"].as_string(), "") for t in (members, rollouts, parents))
    why = case((ended == WITH_PARENT, of_parent), else_=ended)
    led_back = members.c.back.in_(["returning", "returned"])
    excused = sorted(BY_A_PERSON | NOT_THE_RELEASE.keys())
    since = rfc3339(now - timedelta(seconds=rollout.plan.ping_pong.window_s))
    query = (
        select(members.c.device, func.count())
        .join(rollouts, rollouts.c.id == members.c.rollout)
        .outerjoin(parents, parents.c.id == rollouts.c.doc["of"].as_string())
        .where(rollouts.c.digest == rollout.digest, rollouts.c.kind != "return", rollouts.c.id != rollout.id)
        .where(or_(members.c.outcome == Outcome.FAILED.value, led_back & why.not_in(excused)))
        .where(own.not_in(sorted(NOT_THE_RELEASE)))
        .where(members.c.device.in_(devices), members.c.changed >= since)
        .group_by(members.c.device)
    )
    return {device: count for device, count in connection.execute(query)}  # noqa: C416  mypy cannot type dict(rows)


def serving(doc: dict[str, Any], model: str) -> dict[str, Any]:
    """The entry of a device's last state about a model; empty when it serves none."""
    return next((m for m in doc.get("models") or () if m.get("model") == model), {})


def _report(connection: Connection, device: Row[Any], row: Row[Any] | None, *, rows: bool) -> Report | None:
    if row is None:
        return None
    asked = rows and row.state == "PROBATION" and row.at
    answered = _answered_since(connection, device, row.at) if asked else None
    said = (row.rollout, row.generation, row.release, row.state, row.cause, row.sentence)
    return Report(*said, answered, told_of(row.told), stage_of(row.stage))


class _Moments(msgspec.Struct, frozen=True):
    n: int = 0
    mean: float = 0.0
    m2: float = 0.0


class _Shown(msgspec.Struct, frozen=True):
    rows: int = 0
    errors: int = 0
    p95_ratio: float | None = None
    difference: _Moments = _Moments()
    reference: str = "last_good"


def told_of(shown: dict[str, Any]) -> Told | None:
    """The figures in what a device showed of its probation; None when it showed none, or nonsense: figures that are
    missing pass no gate.

    >>> told_of({"rows": 500, "errors": 2, "p95_ratio": 1.1}).errors
    2
    >>> told_of({"rows": -5}), told_of({"rows": 10**200}), told_of({})
    (None, None, None)
    """
    try:
        seen = msgspec.convert(shown, _Shown)
    except msgspec.ValidationError:
        return None
    loss, ratio = seen.difference, 1.0 if seen.p95_ratio is None else seen.p95_ratio
    if (
        not shown
        or not _sane((seen.rows, seen.errors, loss.n, loss.m2))
        or not _sane((abs(loss.mean),))
        or not 1 / MOST_FIGURE <= ratio <= MOST_FIGURE
    ):
        return None
    compared = loss.n if seen.reference == "last_good" else 0
    return Told(
        rows=seen.rows,
        errors=seen.errors,
        latency_ratio=seen.p95_ratio,
        labelled=compared,
        loss_mean=loss.mean if compared else 0.0,
        loss_m2=loss.m2 if compared else 0.0,
    )


def stage_of(told: dict[str, Any]) -> TrialStage | None:
    """What a device told of its stage; None when it told none, or nonsense.

    >>> stage_of({"role": "shares", "share": 0.1}).share
    0.1
    >>> stage_of({}), stage_of({"role": "shares", "share": 7})
    (None, None)
    """
    try:
        found = msgspec.convert(told, TrialStage) if told else None
    except msgspec.ValidationError:
        return None
    return found if found is not None and 0 <= found.share <= 1 else None


def _sane(figures: Iterable[float]) -> bool:
    """Whether sums and squares of a fleet's figures stay figures: one device must not keep a gate from judging."""
    return all(0 <= figure <= MOST_FIGURE for figure in figures)


def _answered_since(connection: Connection, device: Row[Any], at: str) -> int | None:
    """Rows the box has answered since its probation began, from its metrics; None where they cannot tell: before
    two points, or when it serves more than one model."""
    if len(device.doc.get("models") or ()) != 1:
        return None
    sets = tables.metric_sets
    newest = connection.execute(
        select(sets.c.set, sets.c.names).where(sets.c.device == device.id).order_by(sets.c.set.desc())
    ).first()
    if newest is None or "predictions" not in newest.names:
        return None
    place = newest.names.index("predictions") + 1
    since_s = parse_rfc3339(at).timestamp()
    points = [row[place] for row in read_rows(connection, device.id, newest.set, since_s) if len(row) > place]
    known = [value for value in points if value is not None]
    return int(known[-1] - known[0]) if len(known) > 1 else None


def filter_rows(connection: Connection, now: datetime, names: Collection[str] | None = None) -> list[Filtered]:
    """The fleet as the filter language looks at it, or these devices of it."""
    devices, windows = tables.devices, tables.windows
    wanted = select(devices).where(~devices.c.revoked).order_by(devices.c.site)
    closed = select(windows.c.device, windows.c.model, windows.c.release, windows.c.report)
    pieces = [None] if names is None else list(_pieces(sorted(names)))
    verdicts: dict[tuple[str, str, str], str] = {}
    found: list[Row[Any]] = []
    for piece in pieces:
        for row in connection.execute(closed if piece is None else closed.where(windows.c.device.in_(piece))):
            verdicts[row.device, row.model, row.release] = str(row.report.get("verdict", ""))
        found += connection.execute(wanted if piece is None else wanted.where(devices.c.id.in_(piece))).all()
    errors = set(_in_error(connection)) if found else set()
    return [_filtered(row, verdicts, row.id in errors, now) for row in found]


def _in_error(connection: Connection) -> Iterable[str]:
    incidents = tables.incidents
    query = select(incidents.c.subject).where(incidents.c.state != "closed", incidents.c.severity == "error")
    return (str(subject.get("device", "")) for subject in connection.execute(query).scalars())


def _filtered(row: Row[Any], verdicts: dict[tuple[str, str, str], str], bad: bool, now: datetime) -> Filtered:
    models = list(row.doc.get("models") or ())
    served = tuple(
        health.Serving(
            str(m.get("model", "")),
            str(m.get("version", "")),
            str(m.get("state", "")),
            window=verdicts.get((row.id, str(m.get("model")), str(m.get("release"))), ""),
        )
        for m in models
    )
    seen = parse_rfc3339(row.last_seen) if row.last_seen else None
    verdict = health.judge(health.Signs(row.online, seen, served, "trouble" if bad else ""), now)
    cpu = row.hardware.get("cpu")
    model = cpu.get("model", "") if isinstance(cpu, dict) else cpu or row.hardware.get("cpu_model", "")
    return {
        "id": row.id,
        "site": row.site,
        "state": verdict.level.value,
        "online": row.online,
        "agent": row.agent,
        "labels": row.labels,
        "models": models,
        "hardware": {"kind": row.hardware.get("kind") or "CPU", "text": str(row.hardware.get("text") or model)},
    }
