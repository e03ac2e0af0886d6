"""The values of a rollout: what is stored, what is seen of the fleet, and what is ordered."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import msgspec
from landreeve.wire.messages import Probation

from landreeve_hub.rollout.policy import Plan
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


class Outcome(StrEnum):
    """What is known of a device in this rollout. It only ever moves down this list, so repeats, reordering and
    stale reports of a device cannot change what was concluded from better ones."""

    WAITING = "waiting"
    SKIPPED = "skipped"
    ORDERED = "ordered"
    SILENT = "silent"
    COMMITTED = "committed"
    FAILED = "failed"
    REMOVED = "removed"


class Back(StrEnum):
    """The way back of a device, apart from its outcome."""

    NO = ""
    RETURNING = "returning"
    RETURNED = "returned"
    WITHDRAWN = "withdrawn"
    KEPT = "kept"


class Member(msgspec.Struct, frozen=True):
    """One device in a rollout. ``prior`` is what it served when it was ordered: its own last good release.

    ``stage`` is the state its update machine last reported and ``heard`` the hub's time of that change: a
    device's own clock decides nothing here.
    """

    device: str
    site: str
    wave: int
    outcome: Outcome = Outcome.WAITING
    back: Back = Back.NO
    prior: str = ""
    prior_version: str = ""
    ordered_at: datetime | None = None
    stage: str = ""
    heard: datetime | None = None
    cause: str = ""
    sentence: str = ""


class Rollout(msgspec.Struct, frozen=True):
    """The whole of a rollout; stored as JSON, so a restart resumes exactly here.

    ``accepted_failures`` and ``accepted_silent`` grow when a person resumes in spite of them.
    """

    id: str
    model: str
    digest: str
    version: str
    plan: Plan
    members: tuple[Member, ...]
    state: State = State.DRAFT
    wave: int = 0
    wave_since: datetime | None = None
    cause: str = ""
    sentence: str = ""
    accepted_failures: int = 0
    accepted_silent: int = 0
    accepted_waves: int = 0

    @property
    def back_id(self) -> str:
        """The rollout id under which devices are sent back; sorts after this one and before the next."""
        return f"{self.id}-back"


@dataclass(frozen=True, slots=True)
class Report:
    """The latest update report of a device on the rollout's model. ``rows`` have been answered in
    probation so far, where known."""

    rollout: str
    generation: int
    release: str
    state: str
    cause: str = ""
    sentence: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """What the hub knows of a device: ``running`` is the release digest it serves, ``assigned`` the one its
    desired document names, ``generation`` the document it has taken, ``desired`` the newest one."""

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


Fleet = dict[str, DeviceFact]
"""Devices that belong to the fleet now; a removed one is absent."""


@dataclass(frozen=True, slots=True)
class Assign:
    """The device's desired document names this release of the model from now on."""

    device: str
    release: str
    version: str
    rollout: str
    action: str
    probation: Probation


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


Order = Assign | Withdraw | Quarantine | RaiseIncident


@dataclass(frozen=True, slots=True)
class Decision:
    """The rollout as it is from now on, what must be carried out with it, and what it waits for."""

    rollout: Rollout
    orders: tuple[Order, ...] = ()
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that cannot be obeyed in the rollout's state, with the reason."""

    sentence: str
