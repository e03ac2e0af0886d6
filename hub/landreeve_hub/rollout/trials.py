"""How far devices on probation are in the strategy of their rollout, by what they tell themselves. Pure."""

from collections import Counter
from collections.abc import Iterable

from landreeve_hub.rollout.observing import concerns, in_flight
from landreeve_hub.rollout.roster import Member
from landreeve_hub.rollout.state import DeviceFact, Fleet, Rollout
from landreeve_hub.rollout.waiting import PROBATION, Trial, TrialAt, percent

_OF_ROLE = {"listens": TrialAt.SHADOW, "stands_by": TrialAt.STANDBY, "shares": TrialAt.SHARE}
_ORDER = tuple(TrialAt)
_WHERE = {TrialAt.SHADOW: "in shadow", TrialAt.STANDBY: "standing by", TrialAt.ALL: "on probation"}


def trial_of(rollout: Rollout, member: Member, fact: DeviceFact | None) -> Trial:
    """Where the device is; on probation in general where it told no more: an older agent, or a role we do not know."""
    report = fact.report if fact is not None else None
    if report is None or report.trial is None or not concerns(report, rollout, member):
        return Trial()
    at = _OF_ROLE.get(report.trial.role, TrialAt.ALL)
    strategy = rollout.plan.strategy
    key = strategy.key if strategy is not None and at is TrialAt.SHARE else ""
    return Trial(at, report.trial.share if at is TrialAt.SHARE else 0.0, key)


def trials(rollout: Rollout, fleet: Fleet) -> tuple[tuple[Trial, int], ...]:
    """How many devices of the rollout are on probation at each stage, connected or not, the first stage first."""
    found = Counter(trial_of(rollout, m, fleet.get(m.device)) for m in in_flight(rollout) if m.stage == PROBATION)
    return tuple(sorted(found.items(), key=lambda item: (_ORDER.index(item[0].at), item[0].share)))


def summary(found: Iterable[tuple[Trial, int]]) -> str:
    """In words, for one line.

    >>> summary([(Trial(TrialAt.SHADOW), 12), (Trial(TrialAt.SHARE, 0.1), 3), (Trial(), 4)])
    '12 in shadow, 3 at 10% of traffic, 4 on probation'
    """
    return ", ".join(f"{count} {_where(trial)}" for trial, count in found)


def _where(trial: Trial) -> str:
    return f"at {percent(trial.share)} of traffic" if trial.at is TrialAt.SHARE else _WHERE[trial.at]
