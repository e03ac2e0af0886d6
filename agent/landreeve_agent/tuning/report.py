"""What preflight says: the plans it tried, the one it chose, or why the release must not be activated.

These types cross the pipe between `preflight` (supervisor) and `child`; neither side's runtime is named here.
"""

from typing import Any, Literal

import msgspec
from landreeve.blobs.files import Opening

from landreeve_agent.serving.control import Plan

WORK = ".tuning"  # folder inside the release's, for graphs while they are tried
Source = Literal["search", "hint", "cache"]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One plan that was tried on this box. Times are of one row; ``metric`` is the golden set's, in its unit
    (nats for log loss). A plan that was not timed has neither. ``stage`` is how far it came: ``left out``, ``made``,
    ``opened``, ``first look``, ``golden set``, ``round 1`` to ``round 3``, ``limits``, ``won``. ``ratio`` is its time
    by the default plan's, ``memory_mb`` and ``cold_start_s`` were measured in a process of its own."""

    what: str
    plan: Plan
    accepted: bool
    why: str
    metric: float | None = None
    p50_us: float | None = None
    p95_us: float | None = None
    cpu_us: float | None = None
    ratio: float | None = None
    stage: str = ""
    memory_mb: float | None = None
    cold_start_s: float | None = None


class PreflightReport(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """The release works on this box; ``plan`` is how. The first trial is the default plan's.

    ``fingerprint`` names what the choice depends on (tune again when it changes), ``box_class`` the part of it that
    equal boxes share. ``source`` says whether the plan was searched for, hinted, or kept from an earlier preflight.
    """

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
    objective: str = "latency"
    source: Source = "search"

    def rows(self) -> list[dict[str, Any]]:
        """The trials as a table for people."""
        return [
            {
                "what": t.what,
                "stage": t.stage,
                "p50_us": t.p50_us,
                "cpu_us": t.cpu_us,
                "metric": t.metric,
                "memory_mb": t.memory_mb,
                "cold_start_s": t.cold_start_s,
                "accepted": t.accepted,
                "why": t.why,
            }
            for t in self.trials
        ]

    def text(self) -> str:
        """The whole report in Markdown: what won, by how much, what was tried, and why the others fell."""
        from landreeve_agent.tuning.words import report_text

        return report_text(self)


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


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan may cost besides time; 0 sets no limit. The release's own gates hold as well."""

    memory_mb: float = 0.0
    cold_start_s: float = 0.0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do. ``skip`` maps a candidate's name to why it is not tried again.

    ``budget_s`` is the time given to measuring, ``time_s`` to everything. ``exhaustive`` tries what facts of graph and
    box speak against, too. ``fresh`` takes no earlier result. ``opening`` reads the folders of a sealed site; libraries
    may then write plain bytes nowhere but in ``raw``, a folder in memory, and without one no graph is made.
    """

    folder: str
    current: str | None
    threads: int
    budget_s: float
    wanted: str
    skip: dict[str, str] = {}
    hints: tuple[Plan, ...] = ()
    time_s: float = 120.0
    objective: Literal["latency", "throughput"] = "latency"
    limits: Limits = Limits()
    exhaustive: bool = False
    fresh: bool = False
    opening: Opening = Opening()
    raw: str = ""


FromChild = Trying | PreflightReport | PreflightFailed
