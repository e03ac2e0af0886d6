"""How long a box waits before it comes back."""

import random

MIN_RETRY_S = 0.25


def pause_s(jitter_s: float, lasted_s: float) -> float:
    """How long to wait before the next try, after one that lasted so long (a refusal: no time at all).

    Anything up to ``jitter_s``, so that a fleet comes back spread out; without jitter a box whose broker is down
    would try without a pause. The first try after a start comes before any pause.
    """
    return max(random.uniform(0, jitter_s), MIN_RETRY_S - lasted_s)  # noqa: S311 - only spreads load
