"""Whether a new version has proven itself on real traffic, judged from counts alone.

The evidence is looked at every few seconds, so each test must hold at every look and not only at one:

- log loss: an asymptotic confidence sequence for the mean of the paired differences, new minus reference, on the
  same rows (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas: "Time-uniform central limit theory and asymptotic
  confidence sequences", Annals of Statistics 52 (2024), Theorem 2.2 and its Appendix on tuning rho);
- errors: a mixture of likelihood ratios against every rate up to the limit, a test supermartingale that exceeds
  1 / alpha with probability at most alpha (Ville 1939; Wald 1945);
- confidence: bets on bounded differences, which hold from the first row on (`landreeve_agent.update.bounded`);
- answers: a band around both distribution functions that holds at every count (`landreeve_agent.update.shift`).

The reference is the last good version, which sees the same rows as a shadow. The first model ever has none: there
it is the base rate, a forecast that only knows how often the label is 1.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from landreeve.wire.messages import Probation

from landreeve_agent.update.bounded import NO_VALUES, Spread, evidence_below
from landreeve_agent.update.shift import surely_apart

LOSS_CLIP = 1e-3
LATENCY_FLOOR_MS = 10.0
CONSTANT_ROWS = 100
LEAST_ROWS = 30
# Before a version is left for its labels, a label of the rare kind is thought of that costs a nat more (nats).
UNSEEN = 1.0
CLAIM_FACTOR = 2.0
_ERROR_FACTORS = (1.5, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations of a sample."""

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0


@dataclass(frozen=True, slots=True)
class ProbationStats:
    """What the traffic showed of the candidate since it was activated.

    ``rows`` were answered, ``errors`` were not; ``invalid`` answers are no probability. ``difference`` is the log
    loss (nats) of the candidate minus that of the ``reference`` on the same labelled rows; ``loss`` the candidate's
    own. ``p95_ratio`` compares service times with those before, None when there are too few. ``claimed_loss`` is
    what the release says of itself. ``shift`` is the distance of its answers from the last good version's on the
    same ``compared`` rows, ``confidence`` the difference of |2p - 1| on them.

    ``memory_growth_mb`` is by how much the worker has grown since the activation, None while that is unknown;
    ``device_lost`` says in words that the version no longer runs on the device it was proven on; while
    ``device_doubted`` that is being found out.
    """

    rows: int = 0
    errors: int = 0
    invalid: int = 0
    distinct: int = 0
    distinct_before: int = 0
    difference: Moments = Moments()
    loss: Moments = Moments()
    reference: Literal["last_good", "base_rate"] = "last_good"
    p95_ms: float | None = None
    p95_ratio: float | None = None
    claimed_loss: float | None = None
    elapsed_s: float = 0.0
    shift: float = 0.0
    compared: int = 0
    confidence: Spread = NO_VALUES
    memory_growth_mb: float | None = None
    device_lost: str = ""
    device_doubted: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    sentence: str


@dataclass(frozen=True, slots=True)
class Fail:
    cause: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Wait:
    sentence: str


def judge(stats: ProbationStats, policy: Probation) -> Pass | Fail | Wait:
    """The verdict on the evidence so far.

    >>> judge(ProbationStats(rows=12), Probation())
    Wait(sentence='On probation: 12 of 500 rows answered, 0 of 300 labels known.')
    """
    # The device first: what failed because it went away does not speak against the release.
    for check in (_device, _answers, _error_rate, _latency, _memory, _shift, _confidence, _claim, _log_loss):
        failure = check(stats, policy)
        if failure is not None:
            return failure
    return _conclude(stats, policy)


def moments(values: Iterable[float]) -> Moments:
    """Welford's one-pass moments.

    >>> moments([1.0, 2.0, 3.0])
    Moments(n=3, mean=2.0, m2=2.0)
    """
    n, mean, m2 = 0, 0.0, 0.0
    for value in values:
        n += 1
        delta = value - mean
        mean += delta / n
        m2 += delta * (value - mean)
    return Moments(n, mean, m2)


def log_loss(p: float, label: float) -> float:
    """Nats of one forecast, clipped so that one row costs at most 6.9.

    >>> round(log_loss(0.5, 1.0), 4)
    0.6931
    """
    clipped = min(max(p, LOSS_CLIP), 1.0 - LOSS_CLIP)
    return -math.log(clipped if label >= 0.5 else 1.0 - clipped)


def radius(sample: Moments, alpha: float, tuned_for: int, unseen: float = 0.0) -> float:
    """Half the width of the confidence sequence at this count: the true mean lies within it of the sample mean
    at *every* count with probability about 1 - alpha. ``tuned_for`` is the count at which it is tightest.

    The promise is one for large counts: before `LEAST_ROWS` nothing is known. Values that were all alike say nothing of
    a rare one that is still to come: one that far from their mean, ``unseen``, is thought of.
    """
    if sample.n < LEAST_ROWS:
        return math.inf
    rho2 = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / max(tuned_for, 1)
    grown = sample.n * rho2 + 1
    deviation = math.sqrt((sample.m2 + unseen**2) / (sample.n - 1))
    return deviation * math.sqrt(2 * grown / (sample.n**2 * rho2) * math.log(math.sqrt(grown) / alpha))


def error_evidence(errors: int, trials: int, limit: float) -> float:
    """Evidence (an e-value) that the error rate exceeds the limit; 20 or more refutes it at alpha 0.05.

    Each likelihood ratio is a supermartingale under every rate up to ``limit``, because its alternative is above.
    """
    if limit <= 0:
        return math.inf if errors else 0.0
    rates = [min(limit * factor, 0.99) for factor in _ERROR_FACTORS if limit < 0.99]
    logs = [errors * math.log(rate / limit) + (trials - errors) * math.log((1 - rate) / (1 - limit)) for rate in rates]
    return sum(math.exp(min(value, 700.0)) for value in logs) / len(logs) if logs else 0.0


def _answers(stats: ProbationStats, _policy: Probation) -> Fail | None:
    if stats.invalid:
        return Fail("invalid_output", f"{_count(stats.invalid, 'answer')} of {stats.rows} were no probability.")
    if stats.rows >= CONSTANT_ROWS and stats.distinct == 1 and stats.distinct_before != 1:
        return Fail("constant_output", f"All {stats.rows} answers were the same number.")
    return None


def _error_rate(stats: ProbationStats, policy: Probation) -> Fail | None:
    trials = stats.rows + stats.errors
    if (
        trials == 0
        or stats.device_doubted
        or error_evidence(stats.errors, trials, policy.max_error_rate) < 1 / policy.alpha
    ):
        return None
    share = stats.errors / trials
    sentence = (
        f"{_count(stats.errors, 'request')} of {trials} failed ({share:.1%}; at most {policy.max_error_rate:.1%})."
    )
    return Fail("error_rate", sentence)


def _latency(stats: ProbationStats, policy: Probation) -> Fail | None:
    if stats.p95_ratio is None or stats.p95_ms is None or stats.rows < policy.min_rows:
        return None
    # Below the floor nobody notices: 0.2 ms instead of 0.02 ms is no reason to go back.
    if stats.p95_ratio <= policy.max_latency_ratio or stats.p95_ms < LATENCY_FLOOR_MS:
        return None
    sentence = (
        f"95 % of answers took up to {stats.p95_ms:.0f} ms, {stats.p95_ratio:.1f} times as long as before "
        f"(at most {policy.max_latency_ratio:.1f})."
    )
    return Fail("latency", sentence)


def _memory(stats: ProbationStats, policy: Probation) -> Fail | None:
    if stats.memory_growth_mb is None or stats.memory_growth_mb <= policy.max_memory_growth_mb:
        return None
    sentence = (
        f"The inference server grew by {stats.memory_growth_mb:.0f} MB since this version answers "
        f"(at most {policy.max_memory_growth_mb:.0f} MB)."
    )
    return Fail("memory", sentence)


def _device(stats: ProbationStats, _policy: Probation) -> Fail | None:
    """What was proven was the version on its device; elsewhere nothing is known of it."""
    return Fail("accelerator_lost", stats.device_lost) if stats.device_lost else None


def _shift(stats: ProbationStats, policy: Probation) -> Fail | None:
    if surely_apart(stats.shift, stats.compared, policy.alpha) <= policy.max_prediction_shift:
        return None
    sentence = (
        f"Its answers are spread quite differently from those of the last good version on the same {stats.compared} "
        f"rows (distance {stats.shift:.2f}, at most {policy.max_prediction_shift:.2f})."
    )
    return Fail("prediction_shift", sentence)


def _confidence(stats: ProbationStats, policy: Probation) -> Fail | None:
    if evidence_below(stats.confidence, -policy.max_confidence_drop) < 1 / policy.alpha:
        return None
    sentence = (
        f"It is less sure of its answers than the last good version on the same {stats.confidence.n} rows "
        f"(confidence {stats.confidence.mean:+.2f}, at most {-policy.max_confidence_drop:+.2f})."
    )
    return Fail("confidence_drop", sentence)


def _claim(stats: ProbationStats, policy: Probation) -> Fail | None:
    """Far worse than the release claims of itself; only where no last good version tells us more."""
    if stats.reference != "base_rate" or not stats.claimed_loss or stats.loss.n < policy.min_labelled:
        return None
    surely = stats.loss.mean - radius(stats.loss, policy.alpha, policy.max_rows // 2, UNSEEN)
    if surely <= CLAIM_FACTOR * stats.claimed_loss:
        return None
    sentence = (
        f"Log loss {stats.loss.mean:.4f} on {stats.loss.n} labelled rows; the release claims {stats.claimed_loss:.4f}."
    )
    return Fail("claim_missed", sentence)


def _log_loss(stats: ProbationStats, policy: Probation) -> Fail | None:
    if stats.difference.n < policy.min_labelled or policy.min_labelled == 0:
        return None
    surely = stats.difference.mean - radius(stats.difference, policy.alpha, policy.max_rows // 2, UNSEEN)
    return _worse(stats, policy) if surely > policy.max_log_loss_increase else None


def _worse(stats: ProbationStats, policy: Probation) -> Fail:
    than = "the last good version" if stats.reference == "last_good" else "always forecasting the base rate"
    sentence = (
        f"Log loss is {stats.difference.mean:+.4f} against {than} on the same {stats.difference.n} labelled rows "
        f"(at most {policy.max_log_loss_increase:+.4f})."
    )
    return Fail("log_loss", sentence)


def _conclude(stats: ProbationStats, policy: Probation) -> Pass | Fail | Wait:
    """Nothing speaks against the candidate so far: is it enough to go on?"""
    enough = stats.rows >= policy.min_rows and stats.difference.n >= policy.min_labelled
    over = stats.elapsed_s >= policy.max_s
    if not enough:
        return _too_little(stats, policy) if over else Wait(_progress(stats, policy))
    if stats.elapsed_s < policy.min_s:
        left = f"{(policy.min_s - stats.elapsed_s) / 60:.0f} of {policy.min_s / 60:.0f} minutes are left"
        return Wait(f"{_progress(stats, policy)[:-1]}; {left}.")
    if policy.min_labelled == 0:
        return Pass(f"{stats.rows} rows answered without a fault; labels are not asked for.")
    surely = stats.difference.mean + radius(stats.difference, policy.alpha, policy.max_rows // 2)
    if surely <= policy.max_log_loss_increase:
        return Pass(_sentence(f"{_passed(stats)}, surely within the limit."))
    if stats.rows < policy.max_rows and not over:
        return Wait(f"{_progress(stats, policy)[:-1]}; {_passed(stats)} (+/- {surely - stats.difference.mean:.4f}).")
    # Undecided at the end of the probation: the estimate decides, and it fails closed.
    if stats.difference.mean > policy.max_log_loss_increase:
        return _worse(stats, policy)
    return Pass(_sentence(f"{_passed(stats)}, by the estimate at the end of the probation."))


def _too_little(stats: ProbationStats, policy: Probation) -> Pass | Fail:
    """An answer of its own: rates say nothing of so few rows, so counts decide, or the version that is known."""
    quiet = stats.rows >= policy.low_traffic_rows and stats.errors <= policy.low_traffic_errors
    if policy.on_too_little == "keep" and quiet:
        return Pass(
            f"Too little traffic to judge by: {stats.rows} of {policy.min_rows} rows in "
            f"{stats.elapsed_s / 3600:.1f} h, {_count(stats.errors, 'failure')}; kept, as the plan asks."
        )
    sentence = (
        f"In {stats.elapsed_s / 3600:.1f} h only {stats.rows} of {policy.min_rows} rows were answered and "
        f"{stats.difference.n} of {policy.min_labelled} labels became known: not enough to trust it."
    )
    return Fail("not_proven", sentence)


def _progress(stats: ProbationStats, policy: Probation) -> str:
    labels = f", {stats.difference.n} of {policy.min_labelled} labels known" if policy.min_labelled else ""
    return f"On probation: {stats.rows} of {policy.min_rows} rows answered{labels}."


def _passed(stats: ProbationStats) -> str:
    than = "the last good version" if stats.reference == "last_good" else "the base rate"
    return f"log loss {stats.difference.mean:+.4f} against {than} on {stats.difference.n} labelled rows"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
