"""Where the update of one model stands on a device: all that is kept of it. Values only."""

from dataclasses import dataclass, field
from enum import StrEnum

from landreeve.wire.messages import DesiredModel, Probation
from landreeve.wire.plans import RunPlan
from landreeve.wire.schedule import Schedule
from landreeve.wire.strategy import Strategy

MODEL = "model"
FIRMWARE = "firmware"


class Phase(StrEnum):
    """Where an update stands. The values travel in reports."""

    IDLE = "IDLE"
    RECEIVED = "RECEIVED"
    VERIFIED = "VERIFIED"
    DOWNLOADING = "DOWNLOADING"
    STAGED = "STAGED"
    PREFLIGHT = "PREFLIGHT"
    ACTIVATING = "ACTIVATING"
    PROBATION = "PROBATION"
    COMMITTED = "COMMITTED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    ROLLBACK_FAILED = "ROLLBACK_FAILED"
    REJECTED = "REJECTED"
    CANCELLED = "CANCELLED"


BEFORE_ACTIVATION = frozenset(
    {Phase.RECEIVED, Phase.VERIFIED, Phase.DOWNLOADING, Phase.STAGED, Phase.PREFLIGHT},
)
TERMINAL = frozenset(
    {Phase.IDLE, Phase.COMMITTED, Phase.ROLLED_BACK, Phase.ROLLBACK_FAILED, Phase.REJECTED, Phase.CANCELLED},
)


@dataclass(frozen=True, slots=True)
class Order:
    """What the hub wants of one model. ``signed_bytes`` is the manifest's length on which both trust repositories
    agree, 0 when one of them does not name the release. The generation it came with names the order. ``hints`` are
    plans to try first, ``strategy`` says how it takes over the traffic and ``schedule`` when the site may be disturbed.
    ``component`` is the kind of thing that is updated: ``model``, ``agent``, ``firmware``;
    ``after`` names components that must have come to the end of their own orders before this one is activated.
    """

    model: str
    release: str
    version: str
    manifest_bytes: int
    rollout: str
    generation: int
    signed_bytes: int
    rollback: bool = False
    probation: Probation = field(default_factory=Probation)
    hints: tuple[RunPlan, ...] = ()
    strategy: Strategy = field(default_factory=Strategy)
    schedule: Schedule | None = None
    component: str = MODEL
    after: tuple[str, ...] = ()

    def same_as(self, other: "Order") -> bool:
        """Whether the hub asks for the same again."""
        return (self.release, self.rollout, self.rollback) == (other.release, other.rollout, other.rollback)


@dataclass(frozen=True, slots=True)
class Installed:
    """A version on this box's disk with the plan that won here (`landreeve_agent.serving.control.Plan` as JSON)."""

    release: str
    version: str
    plan: str


@dataclass(frozen=True, slots=True)
class State:
    """All that is known of one model's updates.

    ``good`` is proven and pinned, ``previous`` was good before it, ``candidate`` runs or will run in its place,
    ``target`` is where a rollback returns to. ``factory`` is the first version that ever proved itself here: it stays
    on the disk as the last resort. ``generation`` is the highest ever seen. ``step`` counts the stages of the order's
    strategy that are behind it, ``step_since`` is when the present one began.
    """

    model: str
    phase: Phase = Phase.IDLE
    generation: int = 0
    order: Order | None = None
    queued: Order | None = None
    good: Installed | None = None
    previous: Installed | None = None
    candidate: Installed | None = None
    target: Installed | None = None
    factory: Installed | None = None
    attempt: int = 0
    crashes: int = 0
    since: str = ""
    abort: str = ""
    cause: str = ""
    sentence: str = ""
    step: int = 0
    step_since: str = ""


def order_of(wanted: DesiredModel, generation: int, releases: dict[str, int]) -> Order:
    """What a believed document asks for; ``releases`` are the lengths both trust repositories signed, by digest."""
    return Order(
        model=wanted.model,
        release=wanted.release,
        version=wanted.version,
        manifest_bytes=wanted.manifest_bytes,
        rollout=wanted.rollout,
        generation=generation,
        signed_bytes=releases.get(wanted.release, 0),
        rollback=wanted.action == "rollback",
        probation=wanted.probation,
        hints=wanted.hints,
        strategy=wanted.strategy or Strategy(),
        schedule=wanted.schedule,
        component=wanted.component or MODEL,
        after=wanted.after or (),
    )
