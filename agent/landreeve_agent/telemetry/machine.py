"""How the box itself is: processor, memory, disk, and our own memory."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil


class Machine(msgspec.Struct, frozen=True):
    """Percentages of the whole box; ``rss_mb`` is the supervisor's own resident memory."""

    cpu_percent: float
    memory_percent: float
    disk_percent: float
    rss_mb: float


@dataclass(frozen=True)
class MachineProbe:
    """Reads the box; ``folder`` decides which disk is meant."""

    folder: Path

    def read(self) -> Machine:
        """The figures since the last call (the first one's processor figure is 0)."""
        return Machine(
            cpu_percent=psutil.cpu_percent(interval=None),
            memory_percent=psutil.virtual_memory().percent,
            disk_percent=psutil.disk_usage(str(self.folder)).percent,
            rss_mb=round(psutil.Process().memory_info().rss / 1e6, 1),
        )
