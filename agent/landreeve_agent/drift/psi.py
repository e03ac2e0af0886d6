"""How large a window's PSI must be before it means anything: sampling noise, natural variation, effect size."""

from collections.abc import Sequence
from statistics import NormalDist

from landreeve_models.definition import DriftPolicy

# Windows of the training range are few; the largest of them times this is what a usual window stays under.
NATURAL_MARGIN = 1.5


def threshold(
    policy: DriftPolicy, *, reference_rows: int, rows: int, freedom: int, columns: int, natural: Sequence[float] = ()
) -> float:
    """The PSI a column must exceed: the largest of the effect-size floor, what sampling alone gives for this window's
    size (error ``alpha`` over all columns, Bonferroni), and what windows of the training range naturally differed.

    >>> policy = DriftPolicy(alpha=0.01, min_psi=0.1)
    >>> threshold(policy, reference_rows=10_000, rows=5_000, freedom=31, columns=14)
    0.1
    >>> round(threshold(policy, reference_rows=10_000, rows=100, freedom=31, columns=14), 3)
    0.631
    """
    if rows <= 0 or reference_rows <= 0:
        raise ValueError("a threshold needs rows on both sides")
    level = 1 - policy.alpha / max(columns, 1)
    sampling = (1 / rows + 1 / reference_rows) * chi2_quantile(level, freedom)
    return max(policy.min_psi, sampling, NATURAL_MARGIN * max(natural, default=0.0))


def chi2_quantile(level: float, freedom: int) -> float:
    """The quantile of χ² (Wilson & Hilferty 1931); within 1 % for freedom of 10 and more, up to
    4 % high, so cautious, below.

    >>> round(chi2_quantile(0.95, 10), 1)
    18.3
    """
    z = NormalDist().inv_cdf(level)
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + z * part**0.5) ** 3)
