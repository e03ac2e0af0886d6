"""One window's verdict from its scores, its quality and the windows before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from landreeve.sketch.divergence import degrees_of_freedom, psi
from landreeve_models.baseline import Baseline, Reference
from landreeve_models.definition import DriftPolicy

from landreeve_agent.drift.psi import threshold
from landreeve_agent.drift.quality import Quality, auc_fell, excess_is_large, merge_excess

Verdict = Literal["stable", "drifted", "quality_lost", "too_little_data"]
# Small sites: windows too small to tell alone are judged together, this many of them.
MERGED = 4


@dataclass(frozen=True, slots=True)
class Measured:
    """A closed window of one release: PSI and threshold for each column, and quality where labels are known."""

    rows: int
    scores: Mapping[str, float]
    thresholds: Mapping[str, float]
    quality: Quality | None

    @property
    def over(self) -> frozenset[str]:
        """Columns above their threshold in this window alone."""
        return frozenset(name for name, score in self.scores.items() if score > self.thresholds[name])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is concluded, which columns drifted, and one sentence for people."""

    verdict: Verdict
    drifted: tuple[str, ...]
    sentence: str


def score(
    policy: DriftPolicy, baseline: Baseline, sketches: Mapping[str, Reference], quality: Quality | None, rows: int
) -> Measured:
    """The scores of a window's sketches against the release's baseline."""
    scores, limits = {}, {}
    for name, window in sketches.items():
        reference = baseline.columns[name]
        scores[name] = psi(reference, window)
        limits[name] = threshold(
            policy,
            reference_rows=baseline.rows,
            rows=rows,
            freedom=degrees_of_freedom(reference, window),
            columns=len(sketches),
            natural=baseline.natural.get(name, ()),
        )
    return Measured(rows, scores, limits, quality)


def judge(policy: DriftPolicy, now: Measured, before: Sequence[Measured], claimed: Mapping[str, float]) -> Judgement:
    """The verdict of a window given the windows of the same release before it, newest last.

    Nothing is said on one window alone: ``persist`` in a row must agree. Lost quality outranks drifted columns, which
    by themselves call for nobody: seasons drift too.
    """
    if now.rows < policy.min_rows:
        return Judgement("too_little_data", (), f"{now.rows} rows; at least {policy.min_rows} are needed to judge.")
    recent = [*before, now][-policy.persist :]
    drifted = _persisting(recent, policy.persist)
    words = _quality_words(policy, [*before, now], claimed)
    if words:
        return Judgement("quality_lost", drifted, words)
    if drifted:
        return Judgement("drifted", drifted, _drift_words(drifted, now, policy.persist))
    return Judgement("stable", (), f"Inputs and predictions look as they did in training ({now.rows} rows).")


def _persisting(recent: Sequence[Measured], persist: int) -> tuple[str, ...]:
    if len(recent) < persist:
        return ()
    return tuple(sorted(frozenset.intersection(*(window.over for window in recent))))


def _quality_words(policy: DriftPolicy, windows: Sequence[Measured], claimed: Mapping[str, float]) -> str:
    """Why quality counts as lost, or the empty text."""
    known = [w.quality for w in windows[-MERGED:] if w.quality and w.quality.labelled >= policy.min_labelled]
    now = windows[-1].quality
    if now is None or not known or known[-1] is not now:
        return ""
    recent = known[-policy.persist :]
    if len(recent) == policy.persist and all(excess_is_large(q.excess, q.excess_error, policy) for q in recent):
        return _excess_words(now, f"for {policy.persist} windows in a row")
    if len(recent) == policy.persist and all(auc_fell(q, claimed, policy) for q in recent):
        return f"AUC fell to {now.auc:.3f} from the claimed {claimed['auc']:.3f} for {policy.persist} windows in a row."
    if len(known) == MERGED and excess_is_large(*merge_excess(known), policy) and now.excess >= policy.min_excess:
        return _excess_words(now, f"taking the last {MERGED} windows together")
    return ""


def _excess_words(now: Quality, when: str) -> str:
    return (
        f"Predictions are worse than the model believes {when}: log loss {now.log_loss:.3f}, it promised "
        f"{now.entropy:.3f} ({now.labelled} labels, mean label {now.label_mean:.2f}, predicted "
        f"{now.prediction_mean:.2f})."
    )


def _drift_words(drifted: tuple[str, ...], now: Measured, persist: int) -> str:
    ranked = sorted(drifted, key=lambda name: -now.scores[name] / now.thresholds[name])
    shown = ", ".join(ranked[:3]) + (f" and {len(ranked) - 3} more" if len(ranked) > 3 else "")
    return f"{shown} changed against the training data for {persist} windows in a row; no loss of quality is known."
