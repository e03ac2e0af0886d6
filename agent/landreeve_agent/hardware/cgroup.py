"""What the cgroups allow this process, in both versions of the kernel's interface.

A limit binds wherever it is set on the way up, so every ancestor is read and the smallest value counts. Sources:
Linux ``Documentation/admin-guide/cgroup-v2.rst`` (cpu.max, memory.max, memory.high, cpuset.cpus.effective),
``Documentation/scheduler/sched-bwc.rst`` (cpu.cfs_quota_us), ``Documentation/admin-guide/cgroup-v1/cpusets.rst``,
cgroups(7) and proc_pid_mountinfo(5).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from landreeve_agent.hardware.files import read_text
from landreeve_agent.hardware.inventory import Limits

_UNLIMITED_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
Version = Literal["none", "v1", "v2", "v1+v2"]


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: where, which part of it, and its controllers (empty in version 2)."""

    point: str
    part: str
    controllers: frozenset[str]
    version: Literal["v1", "v2"]


@dataclass(frozen=True, slots=True)
class _Found:
    value: float
    version: Literal["v1", "v2"]
    source: str
    text: str = ""


def read_limits(root: Path) -> Limits:
    """The limits that hold for this process in the tree under ``root``."""
    mounts = list(_mounts(read_text(root / "proc/self/mountinfo")))
    paths = _memberships(read_text(root / "proc/self/cgroup"))
    cpus = _smallest(root, mounts, paths, "cpu")
    memory = _smallest(root, mounts, paths, "memory")
    cpuset = _nearest_cpuset(root, mounts, paths)
    versions = sorted({found.version for found in (cpus, memory, cpuset) if found})
    version: Version = "none" if not versions else "v1+v2" if len(versions) == 2 else versions[0]
    return Limits(
        cpus=round(cpus.value, 3) if cpus else None,
        memory_bytes=int(memory.value) if memory else None,
        cpuset=cpuset.text if cpuset else "",
        version=version,
        source=", ".join(found.source for found in (cpus, memory, cpuset) if found),
    )


def _mounts(text: str) -> Iterator[_Mount]:
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield _Mount(fields[4], fields[3], frozenset(), "v2")
        elif kind[0] == "cgroup":
            yield _Mount(fields[4], fields[3], frozenset(kind[2].split(",")), "v1")


def _memberships(text: str) -> dict[str, str]:
    """Controller to path; the empty controller is version 2's one hierarchy."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _folders(mounts: list[_Mount], paths: dict[str, str], controller: str) -> Iterator[tuple[_Mount, str]]:
    """The groups that bind a controller for this process, its own first."""
    for mount in mounts:
        own = paths.get("" if mount.version == "v2" else controller)
        if own is not None and (mount.version == "v2" or controller in mount.controllers):
            yield from ((mount, folder) for folder in _ancestors(mount, own))


def _smallest(root: Path, mounts: list[_Mount], paths: dict[str, str], controller: str) -> _Found | None:
    found: list[_Found] = []
    for mount, folder in _folders(mounts, paths, controller):
        value, name = _READERS[controller, mount.version](root / folder.lstrip("/"))
        if value is not None:
            found.append(_Found(value, mount.version, f"{folder}/{name}"))
    return min(found, key=lambda f: f.value, default=None)


def _nearest_cpuset(root: Path, mounts: list[_Mount], paths: dict[str, str]) -> _Found | None:
    """The nearest group's effective cores: the kernel has intersected them with every ancestor's already."""
    for mount, folder in _folders(mounts, paths, "cpuset"):
        for name in _CPUSET[mount.version]:
            text = read_text(root / folder.lstrip("/") / name)
            if text:
                return _Found(0.0, mount.version, f"{folder}/{name}", text)
    return None


def _ancestors(mount: _Mount, own: str) -> Iterator[str]:
    """The process's own group and every group above it, as far as this mount shows them."""
    inside = PurePosixPath(own)
    if mount.part != "/" and inside.is_relative_to(mount.part):
        inside = "/" / inside.relative_to(mount.part)  # the mount shows only a part of the hierarchy
    elif mount.part != "/":
        inside = PurePosixPath("/")
    # A container may see its own path as "/../…": nothing above the mount can be read anyway.
    parts = [part for part in inside.parts if part not in ("/", "..")]
    for depth in range(len(parts), -1, -1):
        yield "/".join([mount.point.rstrip("/"), *parts[:depth]])


def _cpu_v2(folder: Path) -> tuple[float | None, str]:
    quota, _, period = read_text(folder / "cpu.max").partition(" ")
    if not quota.isdigit() or not period.isdigit():
        return None, "cpu.max"
    return int(quota) / int(period), "cpu.max"


def _cpu_v1(folder: Path) -> tuple[float | None, str]:
    quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or not int(period):  # -1 means no quota
        return None, "cpu.cfs_quota_us"
    return int(quota) / int(period), "cpu.cfs_quota_us"


def _memory_v2(folder: Path) -> tuple[float | None, str]:
    # Above memory.high a group is not killed but slowed down until it is of no use.
    limits = [
        (float(text), name) for name in ("memory.max", "memory.high") if (text := read_text(folder / name)).isdigit()
    ]
    return min(limits, default=(None, "memory.max"))


def _memory_v1(folder: Path) -> tuple[float | None, str]:
    text = read_text(folder / "memory.limit_in_bytes")
    limited = text.isdigit() and int(text) < _UNLIMITED_BYTES
    return (float(text) if limited else None), "memory.limit_in_bytes"


_CPUSET = {"v2": ("cpuset.cpus.effective",), "v1": ("cpuset.effective_cpus", "cpuset.cpus")}
_READERS = {("cpu", "v1"): _cpu_v1, ("cpu", "v2"): _cpu_v2, ("memory", "v1"): _memory_v1, ("memory", "v2"): _memory_v2}
