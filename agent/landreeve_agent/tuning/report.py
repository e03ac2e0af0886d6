"""What preflight says: the plans it tried, the one it chose, or why the release must not be activated.

These types cross the pipe between `preflight` (supervisor) and `child`; neither side's runtime is named here.
"""

from typing import Any

import msgspec

from landreeve_agent.serving.control import Plan


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One plan that was tried on this box. Times are of one row; ``metric`` is the golden set's, in its unit
    (nats for log loss). A plan that was not timed has neither."""

    what: str
    plan: Plan
    accepted: bool
    why: str
    metric: float | None = None
    p50_us: float | None = None
    p95_us: float | None = None
    cpu_us: float | None = None


class PreflightReport(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """The release works on this box; ``plan`` is how. ``fingerprint`` names what the choice depends on: tune again
    when it changes."""

    plan: Plan
    trials: tuple[Trial, ...]
    metric: str
    metric_value: float
    golden_rows: int
    max_difference: float
    rss_mb: float
    seconds: float
    fingerprint: str
    sentence: str
    box_class: str = ""

    def rows(self) -> list[dict[str, Any]]:
        """The trials as a table for people."""
        return [
            {
                "what": t.what,
                "p50_us": t.p50_us,
                "cpu_us": t.cpu_us,
                "metric": t.metric,
                "accepted": t.accepted,
                "why": t.why,
            }
            for t in self.trials
        ]


class PreflightFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The release must not be activated. ``cause``: ``golden_mismatch``, ``bad_release``, ``bad_graph``,
    ``too_slow``, ``too_much_memory``, ``crashed``, ``hung``, ``deadline``, ``preflight_broken``."""

    cause: str
    sentence: str


class Trying(msgspec.Struct, frozen=True, kw_only=True, tag="trying"):
    """The child begins this; should it hang or die, this was it. ``vital`` steps fail the release, others only
    lose a candidate."""

    what: str
    vital: bool


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do. ``skip`` maps a candidate's name to why it is not tried again."""

    folder: str
    current: str | None
    threads: int
    budget_s: float
    wanted: str
    skip: dict[str, str] = {}
    hints: tuple[Plan, ...] = ()


FromChild = Trying | PreflightReport | PreflightFailed
