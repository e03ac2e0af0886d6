"""How a new version takes over the traffic of a device, as the hub orders it.

``direct`` is what every agent does: swap, with the last good version listening in as a shadow while the new one is on
probation. The other kinds are kept to by agents that say `FEATURE` at birth; one that does not ignores the field and
goes ``direct``, so nothing here may be needed for safety: probation and the way back hold for every kind.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

FEATURE = "strategy/1"
"""What a device says in `Birth.features` when it carries out strategies."""
Kind = Literal["direct", "shadow", "canary", "ab", "blue_green"]
MOST_STEPS = 20
MOST_S = 30 * 86_400.0
_HEADER = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class Strategy(msgspec.Struct, frozen=True, kw_only=True):
    """One way of taking over. The new version's part of the answers never falls but to 0, on the way back.

    - ``shadow``: the new version answers every request beside the last good one; its answers are compared, none is
      returned until the comparison has passed (``min_s``, ``min_rows``), then it goes on like ``direct``.
    - ``canary``: ``shares`` are the parts of the traffic it answers, rising, each from above 0 to 1; every step lasts
      at least ``step_s`` and ``step_rows`` answered rows, and the next is taken only while probation finds no fault.
    - ``ab``: requests are assigned by ``key`` (the name of a request parameter or column): the same value always gets
      the same version while the update lasts, ``shares[0]`` of the values the new one; each assignment is recorded.
    - ``blue_green``: both are loaded and warm; all traffic moves in one swap after ``min_s`` of warm standby, and
      the old one stays loaded until ``max_s`` after the swap for an instant return.

    ``min_s`` and ``max_s`` bound the whole of it before COMMITTED: not done by ``max_s`` is ``not_proven`` (0 leaves
    that to the probation). ``min_rows`` are answered rows of the new version.
    """

    kind: Kind = "direct"
    shares: tuple[float, ...] = ()
    key: str = ""
    step_s: float = 0.0
    step_rows: int = 0
    min_rows: int = 0
    min_s: float = 0.0
    max_s: float = 0.0


class TrialStage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version on probation is in its strategy, by what it does there.

    ``role``: it ``answers`` all requests; it ``listens``, and its answers are compared; it ``shares`` the traffic and
    answers a part of it, ``share`` (0 to 1); it ``stands_by``, loaded and asked nothing. An agent may come to know
    others, which are shown as probation in general.
    """

    role: str
    share: float = 0.0


def fault_of(strategy: Strategy) -> str:
    """What nobody could mean by this strategy, naming the field; empty when it can be carried out.

    >>> fault_of(Strategy(kind="canary", shares=(0.05, 0.25, 1.0)))
    ''
    >>> fault_of(Strategy(kind="canary", shares=(0.25, 0.05)))
    'shares: (0.25, 0.05) must rise'
    """
    return _fault_of_shares(strategy) or _fault_of_key(strategy) or _fault_of_times(strategy)


def _fault_of_shares(strategy: Strategy) -> str:
    shares = strategy.shares
    if strategy.kind in {"direct", "shadow", "blue_green"}:
        return f"shares: {strategy.kind} has none" if shares else ""
    if strategy.kind == "ab":
        return "" if len(shares) == 1 and 0 < shares[0] < 1 else "shares: ab takes exactly one, between 0 and 1"
    if not 1 <= len(shares) <= MOST_STEPS or not all(0 < share <= 1 for share in shares):
        return f"shares: canary takes 1 to {MOST_STEPS}, each above 0 and at most 1"
    return "" if _rise(shares) else f"shares: {shares} must rise"


def _rise(shares: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(shares))


def _fault_of_key(strategy: Strategy) -> str:
    if strategy.kind != "ab":
        return f"key: {strategy.kind} has none" if strategy.key else ""
    if not 0 < len(strategy.key) <= 64 or not set(strategy.key) <= _HEADER:
        return "key: ab needs the name of a parameter or column, 1 to 64 of A-Z a-z 0-9 _ . -"
    return ""


def _fault_of_times(strategy: Strategy) -> str:
    for name in ("step_s", "min_s", "max_s"):
        value = getattr(strategy, name)
        if not math.isfinite(value) or not 0 <= value <= MOST_S:
            return f"{name}: {value} must be 0 to {MOST_S:g} seconds"
    for name in ("step_rows", "min_rows"):
        if not 0 <= getattr(strategy, name) <= 10_000_000:
            return f"{name}: {getattr(strategy, name)} must be 0 to 10000000"
    if strategy.kind != "canary" and (strategy.step_s or strategy.step_rows):
        return f"step_s: {strategy.kind} has no steps"
    if strategy.max_s and strategy.max_s < max(strategy.min_s, len(strategy.shares) * strategy.step_s):
        return "max_s: shorter than min_s or than all steps together"
    return ""
