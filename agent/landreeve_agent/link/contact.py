"""How a device's link stands, for the console, the doctor and the heartbeat."""

import time
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(slots=True)
class Counts:
    """What this session did since the supervisor started; shown in the console."""

    connections: int = 0
    sent: int = 0
    resent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    failures: int = 0


@dataclass(slots=True)
class Contact:
    """How the link stands."""

    connected: bool = False
    last_contact: datetime | None = None
    problem: str = ""
    counts: Counts = field(default_factory=Counts)
    hub_said: tuple[datetime, float] | None = None

    def clock_ahead_s(self, now: datetime) -> float | None:
        """This box's clock minus the hub's, which told its time once a session; None before that."""
        if self.hub_said is None:
            return None
        told, at = self.hub_said
        return (now - told).total_seconds() - (time.monotonic() - at)
