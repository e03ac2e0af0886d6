"""The values of a rollout: what is stored, what is seen of the fleet, and what is ordered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal

import msgspec
from landreeve.wire.messages import Probation
from landreeve.wire.schedule import Schedule
from landreeve.wire.strategy import Strategy, TrialStage

from landreeve_hub.rollout.drifting import Pool
from landreeve_hub.rollout.policy import Plan
from landreeve_hub.rollout.roster import EMPTY, Member, Roster, Told
from landreeve_hub.rollout.waiting import Waiting


class State(StrEnum):
    """DRAFT → AWAITING_APPROVAL → RUNNING ⇄ PAUSED → FINISHED; ROLLING_BACK → ROLLED_BACK; ABORTED."""

    DRAFT = "DRAFT"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    ABORTED = "ABORTED"


FINAL = frozenset({State.FINISHED, State.ROLLED_BACK, State.ABORTED})


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout without its members; stored as JSON, so a restart resumes exactly here.

    A ``return`` brings devices back, each to its own last good release, and is begun by the rollout ``of``; a ``late``
    one takes in devices that came after ``of`` had finished.
    ``accepted_failures`` and ``accepted_silent`` grow when a person resumes in spite of them, ``accepted_blamed`` are
    those of the failures that speak against the release (None where that was not told apart yet). ``asked`` names what
    a person was asked, ``keys`` the commands already obeyed. ``ahead`` are the rollouts of components that come first
    (``plan.after``) that were under way when this one was proposed. ``concluded`` says that the watch after the end has
    had its last look, whenever that was. ``forced`` says that a person
    gave a reason to take the release though it is quarantined.
    """

    id: str
    model: str
    digest: str
    version: str
    plan: Plan
    state: State = State.DRAFT
    wave: int = 0
    wave_since: datetime | None = None
    cause: str = ""
    sentence: str = ""
    accepted_failures: int = 0
    accepted_silent: int = 0
    accepted_blamed: int | None = None
    accepted_waves: int = 0
    kind: Literal["update", "return", "late"] = "update"
    of: str = ""
    finished: datetime | None = None
    asked: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    why: str = ""
    risk: str = ""
    rollback_plan: str = ""
    ahead: tuple[str, ...] = ()
    concluded: bool = False
    forced: bool = False

    @property
    def back_id(self) -> str:
        """The id of the return that this rollout begins; sorts after this one and before the next."""
        return f"{self.id}-back"

    @property
    def late_id(self) -> str:
        """The id of the rollout of those that come after this one has finished."""
        return f"{self.id}-late"


class Rollout(Head, frozen=True, kw_only=True):
    """The whole of a rollout."""

    members: Roster = EMPTY


@dataclass(frozen=True, slots=True)
class Report:
    """The latest update report of a device on the rollout's model. ``rows`` have been answered in
    probation so far, where known; ``trial`` is where probation is in its strategy, as the device told it."""

    rollout: str
    generation: int
    release: str
    state: str
    cause: str = ""
    sentence: str = ""
    rows: int | None = None
    told: Told | None = None
    trial: TrialStage | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """The verdict on the newest closed window of a release on a device, and the numbers of that and of the first."""

    release: str
    verdict: str
    sentence: str = ""
    window: int = 0
    first: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """What the hub knows of a device: ``running`` is the release digest it serves, ``assigned`` the one its
    desired document names, ``generation`` the document it has taken, ``desired`` the newest one.

    ``good`` is the release it last said to have proven, where its newest report is not older than its state: the state
    follows by seconds, and meanwhile still names the version before, or one that has failed.
    ``document`` is the digest of the document it obeys, as it says itself, ``newest`` that of the hub's;
    ``assigned_by`` the order id under which ``assigned`` was ordered. ``features``
    are the parts of orders its agent keeps to, ``suspect`` why it is not to be trusted now (a clone, say), ``returns``
    how often the model went back on it within the plan's ping-pong window.
    """

    id: str
    site: str
    online: bool = True
    last_seen: datetime | None = None
    running: str = ""
    running_version: str = ""
    assigned: str = ""
    assigned_version: str = ""
    generation: int = 0
    desired: int = 0
    report: Report | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    suspect: str = ""
    quality: Quality | None = None
    returns: int = 0
    document: str = ""
    newest: str = ""
    assigned_by: str = ""
    good: str = ""
    good_version: str = ""

    @property
    def conflict(self) -> bool:
        """The device obeys a document this hub has never made: the hub was restored from an older backup.

        It shows by a higher number, or by another document under the same number.
        """
        other = bool(self.document) and bool(self.newest) and self.document != self.newest
        return self.generation > self.desired or (self.generation == self.desired and other)


Fleet = Mapping[str, DeviceFact]
"""Devices that belong to the fleet now; a removed one is absent."""


@dataclass(frozen=True, slots=True)
class First:
    """The newest rollout of a component that comes first, or that of its latecomers, and how far its members are."""

    component: str
    rollout: str
    state: State
    members: Mapping[str, Member]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Around:
    """What else goes on. ``busy`` maps sites where another rollout has a device under way to that rollout; ``earlier``
    is an older rollout of the same model that has not ended, ``later`` a newer one under which something was ordered;
    ``child`` the return this rollout began; ``gone`` that what a late one belongs to goes back; ``returns`` how often
    this model went back by itself within the ping-pong window; ``first`` the rollouts of components that come
    before this one's (``plan.after``); ``drift`` the newest windows under the release, where the plan asks for them;
    ``listening`` the moment since which the hub has heard its devices without a break, where that is known;
    ``unfit`` what became of the release since it was approved, where nobody has forced it.
    """

    busy: Mapping[str, str] = field(default_factory=dict)
    earlier: str = ""
    child: Rollout | None = None
    returns: int = 0
    later: str = ""
    first: tuple[First, ...] = ()
    gone: bool = False
    drift: Pool | None = None
    listening: datetime | None = None
    unfit: str = ""


@dataclass(frozen=True, slots=True)
class Assign:
    """The device's desired document names this release of the model from now on."""

    device: str
    release: str
    version: str
    rollout: str
    action: str
    probation: Probation
    schedule: Schedule | None = None
    strategy: Strategy | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The device's desired document names no release of the model any more."""

    device: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """No further rollout may take this digest unless someone forces it with a reason."""

    digest: str
    cause: str
    sentence: str


@dataclass(frozen=True, slots=True)
class RaiseIncident:
    """A person must know: cause, effect and what was done, in plain words."""

    key: str
    kind: str
    severity: str
    cause: str
    sentence: str
    effect: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """Another rollout begins: the way back."""

    rollout: Rollout


Order = Assign | Withdraw | Quarantine | RaiseIncident | Begin


@dataclass(frozen=True, slots=True)
class Decision:
    """The rollout as it is from now on, what must be carried out with it, and what it waits for.

    Until ``wake`` nothing changes by time alone; None when time alone changes nothing.
    """

    rollout: Rollout
    orders: tuple[Order, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    wake: datetime | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that cannot be obeyed in the rollout's state, with the reason."""

    sentence: str
