"""Whether a rollout may go on: counts and shares of outcomes, and figures pooled over devices. Pure.

Nothing passes for want of a figure that is asked for. What is looked at at every tick holds at every look; what is
looked at once a wave shares its chance of a false alarm among the waves (Bonferroni).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from landreeve_hub.rollout.blame import NOT_THE_RELEASE, blames
from landreeve_hub.rollout.drifting import Pool
from landreeve_hub.rollout.policy import Action
from landreeve_hub.rollout.pooling import UNKNOWN, Bounds, evidence, exact, pooled_mean, pooled_rate, pooled_ratio
from landreeve_hub.rollout.roster import Member, Outcome
from landreeve_hub.rollout.state import Rollout
from landreeve_hub.rollout.waiting import named

SHOWN_REASONS = 3
GROWING = 2
"""A pool is looked at while it grows: see `landreeve_hub.rollout.drifting`."""
_ASKED = ("max_error_rate", "max_latency_ratio", "max_log_loss_increase", "max_drifted_share", "max_psi")


@dataclass(frozen=True, slots=True)
class Trigger:
    """A gate does not hold: what is to be done, and why. ``blames`` says that it speaks against the release."""

    action: Action
    cause: str
    sentence: str
    blames: bool = True


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that is asked for is not known (well enough)."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One pooled figure beside its limit. ``need`` devices must have told it."""

    name: str
    cause: str
    limit: float
    bounds: Bounds
    need: int
    action: Action

    @property
    def words(self) -> str:
        """The figure with its bounds.

        >>> Figure("error rate", "error_rate", 0.02, Bounds(0.01, 0.004, 0.03, 7), 1, "pause").words
        'error rate 0.01 (0.004 to 0.03) over 7 devices, at most 0.02'
        """
        b = self.bounds
        over = f"{b.devices} device{'' if b.devices == 1 else 's'}"
        sure = f"{b.low:.3g} to {b.high:.3g}" if math.isfinite(b.high) else "too few to be sure"
        return f"{self.name} {b.estimate:.3g} ({sure}) over {over}, at most {self.limit:g}"


def failures(rollout: Rollout) -> tuple[Member, ...]:
    return rollout.members.of(Outcome.FAILED)


def blamed(rollout: Rollout) -> tuple[Member, ...]:
    """The failures that speak against the release."""
    return tuple(member for member in failures(rollout) if blames(member.cause))


def silent(rollout: Rollout) -> tuple[Member, ...]:
    return rollout.members.of(Outcome.SILENT)


def counted(rollout: Rollout) -> Trigger | None:
    """What failures and silence so far demand."""
    if rollout.kind != "update":
        return None
    return too_many_failures(rollout) or _too_many_silent(rollout)


def too_many_failures(rollout: Rollout) -> Trigger | None:
    """What the failures so far demand: those that speak against the release first, then all of them."""
    gate, failed = rollout.plan.gate, rollout.members.count(Outcome.FAILED)
    committed = rollout.members.count(Outcome.COMMITTED)
    counts, share = (gate.max_failures, rollout.accepted_failures), gate.max_failed_share
    if not _beyond(rollout, (failed, failed + committed), counts, share):
        return None
    bad = blamed(rollout)
    counts = (gate.max_failures, _accepted(rollout))
    if _beyond(rollout, (len(bad), len(bad) + committed), counts, share):
        return Trigger(gate.on_failure, bad[0].cause or "failed", _failed_on(rollout, bad))
    return _not_its_fault(rollout)


def _accepted(rollout: Rollout) -> int:
    """So many failures that speak against the release a person has gone on in spite of."""
    return rollout.accepted_failures if rollout.accepted_blamed is None else rollout.accepted_blamed


def _failed_on(rollout: Rollout, bad: Sequence[Member]) -> str:
    why = " ".join(list(dict.fromkeys(ended_by(m.sentence) for m in bad if m.sentence))[:SHOWN_REASONS])
    first = f"{rollout.version} of {rollout.model} failed on {named([m.site for m in bad])}: "
    return first + (why or "No reason was reported.")


def _not_its_fault(rollout: Rollout) -> Trigger:
    """Too many failures, and too few of them speak against the release."""
    bad = failures(rollout)
    other = [m for m in bad if not blames(m.cause)]
    why = named(list(dict.fromkeys(NOT_THE_RELEASE[m.cause] for m in other)))
    text = f"{_failed_on(rollout, bad)} This does not speak against the release: {why}."
    return Trigger(rollout.plan.actions.site, other[0].cause, text, blames=False)


def _too_many_silent(rollout: Rollout) -> Trigger | None:
    gate, quiet = rollout.plan.gate, rollout.members.count(Outcome.SILENT)
    heard = quiet + rollout.members.count(Outcome.FAILED, Outcome.COMMITTED)
    if not _beyond(rollout, (quiet, heard), (gate.max_silent, rollout.accepted_silent), gate.max_silent_share):
        return None
    gone = silent(rollout)
    text = " ".join(ended_by(m.sentence) for m in gone[:SHOWN_REASONS])
    more = f" {len(gone) - SHOWN_REASONS} more are silent." if len(gone) > SHOWN_REASONS else ""
    return Trigger(rollout.plan.actions.silence, "silent", text + more)


def by_share(rollout: Rollout, share: float | None) -> bool:
    """Whether a share counts instead of an absolute number: asked for, and the rollout is large enough."""
    return share is not None and len(rollout.members) >= rollout.plan.gate.large_from


def _beyond(rollout: Rollout, seen: tuple[int, int], counts: tuple[int, int], share: float | None) -> bool:
    (events, trials), (limit, accepted) = seen, counts
    if share is not None and by_share(rollout, share):
        surely = 1 / (1 - rollout.plan.gate.confidence)
        return events > accepted and evidence(events, trials, share) >= surely
    return events > max(limit, accepted)


def judge_wave(rollout: Rollout, drift: Pool | None = None) -> Trigger | Missing | None:
    """Whether the wave, all of whose devices have come to an outcome, lets the next one begin."""
    if rollout.kind != "update" or rollout.wave < rollout.accepted_waves:
        return None
    return _sample(rollout) or _shares(rollout) or _figures(rollout, drift)


def _sample(rollout: Rollout) -> Trigger | None:
    gate, wave = rollout.plan.gate, rollout.wave
    size = rollout.members.size(wave)
    committed = rollout.members.count(Outcome.COMMITTED, wave=wave)
    ended = committed + rollout.members.count(Outcome.FAILED, wave=wave)
    if committed < min(gate.min_committed, size):
        text = f"Wave {wave + 1} ended with {committed} of {size} committed: too little proof to go on."
        return Trigger("pause", "no_proof", text)
    if ended < min(gate.min_sample, size):
        text = f"Wave {wave + 1} ended with {ended} outcomes of {size} devices; {gate.min_sample} are asked for."
        return Trigger("pause", "no_proof", text)
    return None


def _shares(rollout: Rollout) -> Trigger | None:
    gate, members = rollout.plan.gate, rollout.members
    failed, quiet = members.count(Outcome.FAILED), members.count(Outcome.SILENT)
    committed, actions = members.count(Outcome.COMMITTED), rollout.plan.actions
    heard, bad = failed + committed, len(blamed(rollout)) if gate.max_failed_share is not None else 0
    for what, events, trials, accepted, limit, action in (
        ("failed", bad, bad + committed, _accepted(rollout), gate.max_failed_share, gate.on_failure),
        ("failed", failed, heard, rollout.accepted_failures, gate.max_failed_share, actions.site),
        ("silent", quiet, heard + quiet, rollout.accepted_silent, gate.max_silent_share, actions.silence),
    ):
        if limit is None or not by_share(rollout, limit) or events <= accepted or events <= limit * trials:
            continue
        low, high = exact(events, trials, gate.confidence)
        text = (
            f"After wave {rollout.wave + 1} {events} of {trials} devices are {what} "
            f"({events / trials:.1%}, surely {low:.1%} to {high:.1%}; at most {limit:.1%})."
        )
        return Trigger(action, what, text, blames=what == "silent" or events == bad)
    return None


def _figures(rollout: Rollout, drift: Pool | None) -> Trigger | Missing | None:
    asked = rollout.plan.gate.figures
    missing: list[str] = []
    for figure in figures(rollout, drift):
        told = figure.bounds.devices
        if told < figure.need:
            missing.append(f"{figure.name} was told by {told} of {figure.need} devices")
        elif figure.bounds.low > figure.limit or (figure.bounds.estimate > figure.limit and not asked.strict):
            text = f"After wave {rollout.wave + 1}: {figure.words}."
            return Trigger(figure.action, figure.cause, text)
        elif figure.bounds.high > figure.limit and asked.strict:
            missing.append(f"{figure.words} is not decided")
    ended = rollout.members.of(Outcome.COMMITTED, Outcome.FAILED)
    rows = sum(m.told.rows for m in ended if m.told and _speaks(m))
    if asked.min_rows and rows < asked.min_rows:
        missing.append(f"{rows} of {asked.min_rows} rows were answered on probation")
    windows = drift.rows(_committed(rollout)) if drift is not None else 0
    if asked.max_psi is not None and windows < asked.min_window_rows:
        missing.append(f"{windows} of {asked.min_window_rows} rows lie in closed windows")
    return Missing("; ".join(missing)) if missing else None


def _committed(rollout: Rollout) -> list[str]:
    return [member.device for member in rollout.members.of(Outcome.COMMITTED)]


def figures(rollout: Rollout, drift: Pool | None = None) -> list[Figure]:
    """Every figure that is asked for, as far as devices told it; of drift each column, the farthest first."""
    asked, actions = rollout.plan.gate.figures, rollout.plan.actions
    if all(getattr(asked, name) is None for name in _ASKED):
        return []
    ended = [m for m in rollout.members.of(Outcome.COMMITTED, Outcome.FAILED) if _speaks(m)]
    told = [m.told for m in ended if m.told is not None]
    level = 1 - (1 - asked.confidence) / max(1, rollout.members.last_wave + 1)
    need = min(asked.min_devices, max(1, len(ended)))
    found: list[Figure] = []
    if asked.max_error_rate is not None:
        rates = pooled_rate([(t.errors, t.rows + t.errors) for t in told], level)
        found.append(Figure("error rate", "error_rate", asked.max_error_rate, rates, need, actions.error_rate))
    if asked.max_latency_ratio is not None:
        ratio = pooled_ratio([t.latency_ratio for t in told if t.latency_ratio is not None], level)
        found.append(Figure("latency ratio", "latency", asked.max_latency_ratio, ratio, need, actions.latency))
    if asked.max_log_loss_increase is not None:
        rise = pooled_mean([(t.labelled, t.loss_mean, t.loss_m2) for t in told], level)
        found.append(Figure("log loss rise", "accuracy", asked.max_log_loss_increase, rise, need, actions.accuracy))
    if asked.max_drifted_share is not None:
        drifted = _drifted(rollout.members.of(Outcome.COMMITTED), level)
        found.append(Figure("share of drifted devices", "drift", asked.max_drifted_share, drifted, need, actions.drift))
    if asked.max_psi is not None:
        need = min(asked.min_devices, max(1, len(_committed(rollout))))
        error = (1 - asked.confidence) / max(1, rollout.members.last_wave + 1) / GROWING
        found += _drift(drift, _committed(rollout), (asked.max_psi, error, need), actions.drift)
    return found


def _speaks(member: Member) -> bool:
    """What a box showed while its accelerator went away, say, is no figure of the release."""
    return member.outcome is Outcome.COMMITTED or blames(member.cause)


def _drift(
    pool: Pool | None, devices: Sequence[str], asked: tuple[float, float, int], action: Action
) -> Iterator[Figure]:
    """A figure for each column; one that nobody told when there is no pool. What windows of the training range came to
    by themselves is not held against a column."""
    limit, error, need = asked
    if pool is None:
        yield Figure("drift (PSI)", "drift", limit, UNKNOWN, need, action)
        return
    for one in pool.judge(devices, error):
        yield Figure(f"drift of {one.column} (PSI)", "drift", max(limit, one.usual), one.bounds, need, action)


def _drifted(committed: Sequence[Member], level: float) -> Bounds:
    """The share of devices whose window says that the data have drifted; too little data says nothing."""
    verdicts = [m.verdict for m in committed if m.verdict in {"stable", "drifted", "quality_lost"}]
    events = sum(verdict == "drifted" for verdict in verdicts)
    low, high = exact(events, len(verdicts), level)
    return Bounds(events / len(verdicts) if verdicts else 0.0, low, high, len(verdicts))


def watched(rollout: Rollout, drift: Pool | None = None) -> Trigger | None:
    """What a finished rollout that is still watched demands."""
    return _by_verdicts(rollout) or _by_pool(rollout, drift)


def _watch_figures(rollout: Rollout, drift: Pool | None) -> list[Figure]:
    """The columns of the fleet's newest windows. Each window is looked at anew, and the chance of a false alarm is
    spent on the j-th as 1 / j(j+1), which adds up to 1 however long the watch is."""
    watch, devices = rollout.plan.watch, _committed(rollout)
    if watch.max_psi is None:
        return []
    looks = drift.looks(devices) if drift is not None else 1
    error = (1 - watch.confidence) / (looks * (looks + 1)) / GROWING
    need = min(watch.min_devices, max(1, len(devices)))
    return list(_drift(drift, devices, (watch.max_psi, error, need), rollout.plan.actions.drift))


def _by_pool(rollout: Rollout, drift: Pool | None) -> Trigger | None:
    rows = drift.rows(_committed(rollout)) if drift is not None else 0
    for figure in _watch_figures(rollout, drift):
        enough = figure.bounds.devices >= figure.need and rows >= rollout.plan.watch.min_window_rows
        if enough and figure.bounds.low > figure.limit:
            text = f"{rollout.version} of {rollout.model} has drifted since it was rolled out: {figure.words}."
            return Trigger(figure.action, "drift", text)
    return None


def unproven(rollout: Rollout, drift: Pool | None) -> str:
    """Why a watch that ends now has not shown that the fleet did not drift; empty when it has, or was not to."""
    watch = rollout.plan.watch
    rows = drift.rows(_committed(rollout)) if drift is not None else 0
    if watch.max_psi is not None and rows < watch.min_window_rows:
        return f"{rows} of {watch.min_window_rows} rows lie in closed windows"
    for figure in _watch_figures(rollout, drift):
        if figure.bounds.devices < figure.need:
            return f"{figure.name} was told by {figure.bounds.devices} of {figure.need} devices"
        if figure.bounds.estimate > figure.limit:
            return f"{figure.words} is not decided"
    return ""


def _by_verdicts(rollout: Rollout) -> Trigger | None:
    watch, members = rollout.plan.watch, rollout.members
    for verdict, limit, action, what in (
        ("quality_lost", watch.max_quality_lost, rollout.plan.actions.accuracy, "lost accuracy"),
        ("drifted", watch.max_drifted, rollout.plan.actions.drift, "drifted"),
    ):
        devices = members.judged(verdict)
        if limit is None or len(devices) <= limit:
            continue
        sites = named([members[d].site for d in devices])
        text = (
            f"{rollout.version} of {rollout.model} has {what} on {sites} since it was rolled out (accepted: {limit})."
        )
        return Trigger(action, "accuracy" if verdict == "quality_lost" else "drift", text)
    return None


def ended_by(sentence: str) -> str:
    """The sentence with its full stop."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
