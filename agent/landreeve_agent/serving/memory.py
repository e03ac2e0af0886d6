"""How much memory models may take in one worker, and which of them sleeps when another needs room.

A model is a *tenant*: it says what it costs, what it is worth and when it was last used. Loads go one at a time, so
that the growth of the process can be told to its cause. The order of sleep: what is idle before what is in use, then
shadows, then old versions, then what serves, and among equals the one used longest ago.
"""

import contextlib
import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from landreeve_agent.serving.errors import LoadFailedError

SHARE = 0.6  # of what the system lets us use: the rest is the supervisor's, the trainer's and the site's own
IDLE_S = 1.0
STAY_S = 1.0  # two models that need each other's room take turns of at least this long, not one request each
_FLOOR_BYTES = 64_000_000
# How much larger a loaded graph is than its file, before anybody has measured this one. Measured on five models.
_GROWTH = {"onnxruntime": 1.5, "openvino": 2.5, "torch": 3.0}
_FIXED_BYTES = 1_000_000


class Worth(IntEnum):
    """What a version is for, least valuable first."""

    SHADOW = 0
    OLD = 1
    ACTIVE = 2


class Tenant(Protocol):
    """A version that takes memory while it is awake. Times are monotonic seconds."""

    @property
    def name(self) -> str: ...

    @property
    def awake(self) -> bool: ...

    worth: Worth
    cost_bytes: int
    last_used: float
    woke: float

    def sleep(self, reason: str) -> None: ...


def budget_bytes(memory_mb: int, usable_bytes: int) -> int:
    """What models may take: the setting, or by 0 three fifths of what this process may use.

    >>> budget_bytes(0, 4_000_000_000), budget_bytes(500, 4_000_000_000)
    (2400000000, 500000000)
    """
    return memory_mb * 1_000_000 or max(_FLOOR_BYTES, int(usable_bytes * SHARE))


def estimate_bytes(graph_bytes: int, backend: str) -> int:
    """What a graph of that size will cost, before it was ever loaded."""
    return int(graph_bytes * _GROWTH.get(backend, 2.0)) + _FIXED_BYTES


def next_to_sleep(tenants: Iterable[Tenant], now: float) -> Tenant | None:
    """The least valuable of them; None when there is none."""

    def value(tenant: Tenant) -> tuple[bool, Worth, float]:
        return now - tenant.last_used < IDLE_S, tenant.worth, tenant.last_used

    return min(tenants, key=value, default=None)


def usable_bytes(root: Path) -> int:
    """What this process may take of the machine: all of it, or the smallest cgroup limit above it."""
    from landreeve_agent.hardware.cgroup import read_limits

    total = 0
    for line in (root / "proc/meminfo").read_text().splitlines() if (root / "proc/meminfo").exists() else ():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    limit = read_limits(root).memory_bytes
    return min(total or 2_000_000_000, limit or total or 2_000_000_000)


def available_bytes() -> int:
    """What the system can give, within the limit of the group that this process runs in."""
    import psutil  # for the supervisor, and seldom: a worker does without it

    own = psutil.Process()
    taken = 0
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            taken += process.memory_info().rss
    return min(psutil.virtual_memory().available, usable_bytes(Path("/")) - taken)


class Memory:
    """The ledger of one worker's models. Used from any thread; ``wait`` is `time.sleep` outside tests."""

    def __init__(
        self,
        limit_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.limit_bytes = limit_bytes
        self.runtimes: set[str] = set()  # those that have run in this process
        self._clock = clock
        self._wait = wait
        self._tenants: weakref.WeakSet[Tenant] = weakref.WeakSet()
        self._lock = threading.RLock()

    @property
    def held_bytes(self) -> int:
        """What the models that are awake cost."""
        return sum(tenant.cost_bytes for tenant in self._awake())

    @contextlib.contextmanager
    def room(self, tenant: Tenant, needs_bytes: Callable[[], int]) -> Iterator[None]:
        """Load within this: others have been sent to sleep until ``needs_bytes`` fit, and nobody else loads.

        Afterwards ``tenant.cost_bytes`` counts, and more may have to sleep. Raises `LoadFailedError` for what can
        never fit.
        """
        with self._lock:
            self._make(tenant, needs_bytes())
            yield
            self._tenants.add(tenant)
            self._make(tenant, tenant.cost_bytes)

    def require_possible(self, name: str, needs_bytes: int) -> None:
        """Refuse what is larger than all the room there is."""
        if needs_bytes > self.limit_bytes:
            raise LoadFailedError(
                "too_large",
                f"{name} needs {_mb(needs_bytes)} and all models together may take {_mb(self.limit_bytes)}: "
                "raise serving.memory_mb, or release a smaller variant",
            )

    def leave(self, tenant: Tenant) -> None:
        """It is wanted no more."""
        self._tenants.discard(tenant)

    def _awake(self) -> list[Tenant]:
        return [tenant for tenant in tuple(self._tenants) if tenant.awake]

    def _make(self, newcomer: Tenant, needs_bytes: int) -> None:
        slept = False
        while True:
            others = [tenant for tenant in self._awake() if tenant is not newcomer]
            if sum(tenant.cost_bytes for tenant in others) + needs_bytes <= self.limit_bytes:
                break
            victim = next_to_sleep(others, self._clock())
            if victim is None:
                break
            self._wait(max(0.0, STAY_S - (self._clock() - victim.woke)) if _in_use(victim, self._clock()) else 0.0)
            victim.sleep(f"asleep to make room for {newcomer.name}; the next request wakes it")
            slept = True
        if slept:
            give_back()


def _in_use(tenant: Tenant, now: float) -> bool:
    return now - tenant.last_used < IDLE_S


def give_back() -> None:
    """Return to the system what a model that sleeps has left."""
    gc.collect()
    trim()


def trim() -> None:
    """Return freed memory to the system: glibc keeps it otherwise, and a load would be measured wrong."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return  # not glibc
    malloc_trim(0)


def rss_bytes(pid: int | None = None) -> int:
    """Resident memory of this or another process; 0 when the system does not tell."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()


def private_bytes(pid: int | None = None) -> int:
    """Memory that this or another process shares with no file: code that the kernel can drop and read again is no
    model's cost, and the first model of a runtime touches 20 MB of it. 0 when the system does not tell."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))


def _mb(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
