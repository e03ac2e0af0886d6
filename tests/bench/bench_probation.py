"""How often chance alone ends a probation that is looked at after every row, and how soon a real fault is found.

Simulated traffic, no time measured. Writes build/bench/probation.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.messages import Probation  # noqa: E402 - needs the path above
from landreeve_agent.update.bounded import evidence_below, spread  # noqa: E402
from landreeve_agent.update.probation import Fail, Moments, Pass, ProbationStats, error_evidence, judge  # noqa: E402
from landreeve_agent.update.shift import distance, surely_apart  # noqa: E402

RUNS, ROWS, EVERY = 400, 4000, 10
POLICY = Probation()
Values = NDArray[np.float64]


def errors(rng: np.random.Generator, rate: float) -> int:
    """The row at which that error rate is refused; 0 for never."""
    count = np.cumsum(rng.random(ROWS) < rate)
    for n in range(1, ROWS + 1):
        if error_evidence(int(count[n - 1]), n, POLICY.max_error_rate) >= 1 / POLICY.alpha:
            return n
    return 0


def losses(p: Values, y: Values) -> Values:
    clipped = np.clip(p, 1e-3, 1 - 1e-3)
    return np.asarray(-np.where(y > 0.5, np.log(clipped), np.log(1 - clipped)))


def judged(rng: np.random.Generator, shrunk: float, noise: float) -> tuple[str, int]:
    """How a probation ends of a version whose log odds are shrunk towards 0, beside one that is right but for noise."""
    q = rng.beta(2, 5, ROWS)
    y = (rng.random(ROWS) < q).astype(float)
    odds = np.log(q / (1 - q))
    old, new = (1 / (1 + np.exp(-(odds * (1 - s) + rng.normal(0, noise, ROWS)))) for s in (0.0, shrunk))
    difference = losses(new, y) - losses(old, y)
    for n in range(POLICY.min_labelled, ROWS + 1, EVERY):
        seen = difference[:n]
        moments = Moments(n, float(seen.mean()), float(seen.var() * n))
        found = judge(ProbationStats(rows=n, distinct=300, distinct_before=300, difference=moments), POLICY)
        if isinstance(found, Fail | Pass):
            return type(found).__name__, n
    return "Wait", ROWS


def shift(rng: np.random.Generator, ours: float, theirs: float, limit: float) -> int:
    """The row at which the answers are called further apart than the limit; 0 for never."""
    a, b = (rng.beta(8 * mean, 8 * (1 - mean), 800).tolist() for mean in (ours, theirs))
    for n in range(20, 801, EVERY):
        if surely_apart(distance(a[:n], b[:n]), n, POLICY.alpha) > limit:
            return n
    return 0


def confidence(rng: np.random.Generator, drop: float, spread_out: float, seldom: float = 0.0) -> int:
    """The row at which a confidence that fell by ``drop`` in the mean is found to have fallen by more than the limit; 0
    for never. ``seldom`` answers differ by half of the scale from all others."""
    usual = rng.normal(-drop - 0.5 * seldom, spread_out, 1500) + 0.5 * (rng.random(1500) < seldom)
    for n in range(EVERY, 1501, EVERY):
        seen = evidence_below(spread(np.clip(usual[:n], -1, 1).tolist()), -POLICY.max_confidence_drop)
        if seen >= 1 / POLICY.alpha:
            return n
    return 0


def row(what: str, value: float, unit: str, bar: str | None = None, *, holds: bool | None = None) -> dict[str, object]:
    return {"what": what, "value": round(value, 4), "unit": unit, "bar": bar, "holds": holds}


def alarms(what: str, run: Callable[[], int], runs: int) -> dict[str, object]:
    share = sum(run() > 0 for _ in range(runs)) / runs
    # Three standard errors of so few runs beyond alpha.
    most = POLICY.alpha + 3 * (POLICY.alpha * (1 - POLICY.alpha) / runs) ** 0.5
    return row(f"{what}: false alarms in {runs} runs", share, "", f"≤ {most:.3f}", holds=share <= most)


def power(what: str, run: Callable[[], int], runs: int) -> list[dict[str, object]]:
    found = [at for at in (run() for _ in range(runs)) if at]
    share, median = len(found) / runs, float(np.median(found)) if found else 0.0
    return [row(f"{what}: found", share, ""), row(f"{what}: after (median)", median, "rows")]


def measure() -> list[dict[str, object]]:
    rng = np.random.default_rng(3)
    limit, drop = POLICY.max_error_rate, POLICY.max_confidence_drop

    def fault(shrunk: float, noise: float) -> int:
        kind, at = judged(rng, shrunk, noise)
        return at if kind == "Fail" else 0

    rows = [
        alarms("errors at the limit, a look after each of 4000 rows", lambda: errors(rng, limit), RUNS),
        alarms("log loss of equal versions, little apart", lambda: fault(0.0, 0.05), RUNS),
        alarms("log loss of equal versions, further apart", lambda: fault(0.0, 0.2), RUNS),
        alarms("confidence at the limit", lambda: confidence(rng, drop, 0.2), RUNS // 4),
        alarms("confidence at the limit, 2 % of answers apart", lambda: confidence(rng, drop, 0.0, 0.02), RUNS // 4),
        alarms("answers of one distribution, any shift", lambda: shift(rng, 0.3, 0.3, 0.0), RUNS // 4),
    ]
    for factor in (1.5, 2.0, 3.0, 5.0):
        rows += power(f"errors {factor:g} times the limit", lambda f=factor: errors(rng, f * limit), RUNS // 4)
    for shrunk in (0.2, 0.4, 0.6):
        rows += power(f"log odds shrunk by {shrunk:g}", lambda s=shrunk: fault(s, 0.05), RUNS // 4)
    for more in (0.1, 0.2, 0.4):
        what = f"confidence {more:g} below the limit of {drop:g}"
        rows += power(what, lambda m=more: confidence(rng, drop + m, 0.2), RUNS // 8)
    for mean in (0.5, 0.6, 0.8):
        what = f"mean answer 0.2 to {mean:g}, limit {POLICY.max_prediction_shift:g}"
        rows += power(what, lambda m=mean: shift(rng, 0.2, m, POLICY.max_prediction_shift), RUNS // 8)
    return rows


def main() -> None:
    found = measure()
    for each in found:
        verdict = "" if each["bar"] is None else f"bar {each['bar']}: {'holds' if each['holds'] else 'missed'}"
        print(f"{each['what']:75}{each['value']:>10} {each['unit']:5} {verdict}")
    target = ROOT / "build/bench/probation.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
