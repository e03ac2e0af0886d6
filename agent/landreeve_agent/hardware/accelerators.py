"""GPUs and NPUs, from PCI, drm and accel in sysfs and NVIDIA's own proc files.

A device is known by its PCI vendor and the driver that is bound to it, never by its node's name: Intel's, AMD's
and Rockchip's NPUs all appear as ``/dev/accel/accel0``. Sources: Linux ``Documentation/ABI/testing/sysfs-bus-pci``,
``Documentation/accel/introduction.rst``, drivers ``ivpu`` (its module is ``intel_vpu``), ``amdxdna``, ``rocket``;
``Documentation/gpu/amdgpu/driver-misc.rst`` (mem_info_vram_total).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from landreeve_agent.hardware.files import children, link_name, read_text
from landreeve_agent.hardware.inventory import Accelerator

_DISPLAY = "0x03"
_VENDORS = {"0x10de": "NVIDIA", "0x8086": "Intel", "0x1002": "AMD"}
_GPU_DRIVERS = {"0x10de": ("nvidia",), "0x8086": ("i915", "xe"), "0x1002": ("amdgpu",)}
_NPUS = {
    "intel_vpu": ("Intel", "Intel NPU"),
    "amdxdna": ("AMD", "AMD XDNA NPU"),
    "rocket": ("Rockchip", "Rockchip NPU"),
}
_INTEL_NPU_IDS = {
    "0x7d1d": "Meteor Lake", "0xad1d": "Arrow Lake", "0x643e": "Lunar Lake", "0xb03e": "Panther Lake",
    "0xfd3e": "Wildcat Lake",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Node:
    """A device node and why it cannot be opened (empty when it can)."""

    path: str
    problem: str


def read_accelerators(root: Path) -> tuple[Accelerator, ...]:
    """Every GPU and NPU of the tree under ``root``, GPUs first."""
    return (*_gpus(root), *_npus(root))


def _gpus(root: Path) -> Iterator[Accelerator]:
    for device in children(root / "sys/bus/pci/devices"):
        vendor = read_text(device / "vendor")
        if vendor in _VENDORS and read_text(device / "class").startswith(_DISPLAY):
            yield _nvidia(root, device) if vendor == "0x10de" else _drm_gpu(root, device, vendor)


def _nvidia(root: Path, device: Path) -> Accelerator:
    driver = link_name(device / "driver")
    version = _nvidia_version(read_text(root / "proc/driver/nvidia/version"))
    told = read_text(root / "proc/driver/nvidia/gpus" / device.name / "information")
    name = _after(told, "Model:") or f"NVIDIA GPU {read_text(device / 'device')}"
    node = _open_node(root, "dev/nvidiactl", "video")
    if driver != "nvidia":
        bound = f"the driver {driver!r} is bound" if driver else "no driver is bound"
        problem = f"{bound}; install NVIDIA's driver"
    else:
        problem = node.problem or ("" if version else "the driver does not answer in /proc/driver/nvidia")
    return Accelerator(
        kind="gpu", vendor="NVIDIA", name=name, pci=device.name, driver=driver, driver_version=version,
        node=node.path, usable=not problem, problem=problem,
    )  # fmt: skip


def _nvidia_version(text: str) -> str:
    """The version in ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu …``."""
    words = _after(text, "NVRM version:").split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def _after(text: str, label: str) -> str:
    for line in text.splitlines():
        if line.strip().startswith(label):
            return line.partition(":")[2].strip()
    return ""


def _drm_gpu(root: Path, device: Path, vendor: str) -> Accelerator:
    driver = link_name(device / "driver")
    expected = _GPU_DRIVERS[vendor]
    render = children(device / "drm", "renderD*")
    if driver not in expected:
        bound = f"the driver {driver!r} is bound" if driver else "no driver is bound"
        node = _Node("", f"{bound}, expected {' or '.join(expected)}")
    elif not render:
        node = _Node("", "the driver offers no render node")
    else:
        node = _open_node(root, f"dev/dri/{render[0].name}", "render")
    memory = read_text(device / "mem_info_vram_total")
    maker = _VENDORS[vendor]
    return Accelerator(
        kind="gpu", vendor=maker, name=f"{maker} GPU {read_text(device / 'device')}", pci=device.name, driver=driver,
        node=node.path, memory_bytes=int(memory) if memory.isdigit() else 0, usable=not node.problem,
        problem=node.problem,
    )  # fmt: skip


def _npus(root: Path) -> Iterator[Accelerator]:
    for entry in children(root / "sys/class/accel", "accel[0-9]*"):
        driver = link_name(entry / "device/driver")
        if driver in _NPUS:
            yield _npu(root, entry, driver)


def _npu(root: Path, entry: Path, driver: str) -> Accelerator:
    vendor, name = _NPUS[driver]
    generation = _INTEL_NPU_IDS.get(read_text(entry / "device/device")) if driver == "intel_vpu" else None
    own_name = read_text(entry / "device/vbnv")  # AMD's driver tells the board's own name
    node = _open_node(root, f"dev/accel/{entry.name}", "render")
    kind: Literal["npu"] = "npu"
    return Accelerator(
        kind=kind, vendor=vendor, name=own_name or (f"{name} ({generation})" if generation else name),
        pci=link_name(entry / "device"), driver=driver, driver_version=read_text(entry / "device/fw_version"),
        node=node.path, usable=not node.problem, problem=node.problem,
    )  # fmt: skip


def _open_node(root: Path, relative: str, group: str) -> _Node:
    path = root / relative
    shown = f"/{relative}"
    if not path.exists():
        return _Node(
            shown, f"{shown} is missing: is the driver's module loaded, and the device passed to the container?"
        )
    if not os.access(path, os.R_OK | os.W_OK):
        return _Node(shown, f"no permission for {shown}: add the service's user to the group {group!r}")
    return _Node(shown, "")
