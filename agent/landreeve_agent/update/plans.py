"""Plans between this box and the hub: hints in, the report of a preflight out. Pure but for `keep`.

A hint comes signed, and still nothing of it is believed: it is one more plan to gate and to measure. What nobody
could mean, or what this box cannot give, is left out with a reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec
from landreeve.wire.messages import PlanReport
from landreeve.wire.plans import MOST_HINTS, BoxFacts, PlanTrial, RunPlan, bounded, class_of, fault_of
from sqlite_utils import Database as SqliteDatabase

from landreeve_agent.hardware.inventory import Inventory
from landreeve_agent.serving.control import Plan
from landreeve_agent.store.stamps import stamp
from landreeve_agent.tuning.boxclass import CAPS, effective_isa
from landreeve_agent.tuning.report import PreflightReport, Trial
from landreeve_agent.update.standing import Order

KEPT_RELEASES = 8
_SENTENCE = 400
_KEEP = """
INSERT INTO plans VALUES (?, ?, ?, ?)
ON CONFLICT (model, release) DO UPDATE SET at = excluded.at, report = excluded.report
"""
_FORGET = """
DELETE FROM plans WHERE model = ?1 AND release NOT IN
(SELECT release FROM plans WHERE model = ?1 ORDER BY at DESC LIMIT ?2)
"""


@dataclass(frozen=True, slots=True)
class Hints:
    """What of the hub's hints is tried, and in words why the others are not."""

    plans: tuple[Plan, ...] = ()
    refused: tuple[str, ...] = ()


def facts_of(inventory: Inventory, threads: int, environ: Mapping[str, str]) -> BoxFacts:
    """What decides which plan wins on a box; ``threads`` is what inference may use, ``environ`` what holds runtimes
    back.

    Runtimes count by what is installed: whether one works is found out later than the class must be known.
    """
    devices = (device for device in inventory.accelerators if device.usable)
    return BoxFacts(
        cpu=inventory.cpu.model,
        isa=tuple(sorted(effective_isa(inventory.cpu.isa, environ))),
        threads=threads,
        runtimes={r.name: r.version for r in inventory.runtimes if r.version},
        drivers={f"{d.kind} {d.name}": f"{d.driver} {d.driver_version}".strip() for d in devices},
        caps={name: environ[name] for name in CAPS if environ.get(name)},
    )


def taken(hints: Iterable[RunPlan], threads: int) -> Hints:
    """The hints this box can try with ``threads`` at most, each once."""
    plans, refused = list[Plan](), list[str]()
    for number, hint in enumerate(hints):
        if fault := _fault(hint, number, threads):
            refused.append(fault)
        elif (plan := _plan(hint)) not in plans:
            plans.append(plan)
    return Hints(tuple(plans), tuple(refused))


def report_of(order: Order, verdict: PreflightReport, box: BoxFacts, hints: Hints) -> PlanReport:
    """What the hub and the console are told of a preflight that passed."""
    winner = _winner(verdict)
    default = verdict.trials[0] if verdict.trials else winner
    trials, left_out = bounded(tuple(_told(trial) for trial in verdict.trials))
    plan = _words(verdict.plan)
    return PlanReport(
        model=order.model,
        release=order.release,
        version=order.version,
        box_class=class_of(box) or verdict.box_class,
        box=box,
        plan=plan,
        ratio=_ratio(winner.p50_us, default.p50_us) if winner.ratio is None else round(winner.ratio, 4),
        cpu_ratio=_ratio(winner.cpu_us, default.cpu_us),
        p50_us=winner.p50_us,
        cpu_us=winner.cpu_us,
        metric=verdict.metric,
        metric_value=verdict.metric_value if winner.metric is None else winner.metric,
        seconds=round(verdict.seconds, 2),
        hints=len(hints.plans),
        source=verdict.source,
        hinted=any(_same_way(plan, _words(hint)) for hint in hints.plans),
        trials=trials,
        left_out=left_out,
        sentence=verdict.sentence[:_SENTENCE],
    )


def keep(db: SqliteDatabase, report: PlanReport, now: datetime) -> None:
    """For the site's own console; reports of releases long gone are forgotten."""
    db.conn.execute(_KEEP, (report.model, report.release, stamp(now), msgspec.json.encode(report)))
    db.conn.execute(_FORGET, (report.model, KEPT_RELEASES))


def _fault(hint: RunPlan, number: int, threads: int) -> str:
    name = hint.name[:120]
    if number >= MOST_HINTS:
        return f"{name}: more than {MOST_HINTS} hints"
    if fault := fault_of(hint):
        return f"{name}: {fault}"
    if hint.threads * hint.streams > threads:
        return f"{name}: this box gives {threads} to inference"
    return ""


def _plan(hint: RunPlan) -> Plan:
    """The plan by its name; the file of its graph is this box's own affair."""
    return Plan(
        hint.backend, hint.device, hint.precision, hint.threads, hint.batch, streams=hint.streams, recipe=hint.recipe
    )


def _words(plan: Plan) -> RunPlan:
    return RunPlan(
        backend=plan.backend,
        device=plan.device,
        precision=plan.precision,
        threads=plan.threads,
        streams=plan.streams,
        batch=plan.batch,
        recipe=plan.recipe,
    )


def _same_way(one: RunPlan, other: RunPlan) -> bool:
    """Whether both run the same graph the same way; how many rows are joined is measured after the choice."""
    return msgspec.structs.replace(one, batch=1) == msgspec.structs.replace(other, batch=1)


def _winner(verdict: PreflightReport) -> Trial:
    """The trial of the chosen plan; one without figures when it was not timed."""
    own = (trial for trial in verdict.trials if trial.plan.name == verdict.plan.name and trial.accepted)
    return next(own, Trial(what=verdict.plan.name, plan=verdict.plan, accepted=True, why=""))


def _told(trial: Trial) -> PlanTrial:
    return PlanTrial(
        what=trial.what,
        accepted=trial.accepted,
        why=trial.why,
        p50_us=trial.p50_us,
        cpu_us=trial.cpu_us,
        metric=trial.metric,
        ratio=trial.ratio,
        stage=trial.stage,
    )


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 4) if one and other else None
