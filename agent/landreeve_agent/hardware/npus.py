"""NPUs: the accel class (Intel, AMD, mainline Rockchip), Rockchip's own driver, Hailo, and Coral.

An accel device is known by the driver bound to it, never by its node's name: Intel's, AMD's and Rockchip's all appear
as ``/dev/accel/accel0``. Sources: Linux ``Documentation/accel/introduction.rst``; drivers ``ivpu`` (its module is
``intel_vpu``; ``ivpu_sysfs.c``, ``ivpu_debugfs.c``), ``amdxdna`` (``amdxdna_sysfs.c``), ``rocket``;
hailort-drivers ``linux/pcie/src/sysfs.c``; gasket-driver ``apex_driver.c``; Rockchip's BSP ``drivers/rknpu``.
"""

from collections.abc import Iterator
from pathlib import Path

from landreeve_agent.hardware.files import children, link_name, read_strings, read_text, variables
from landreeve_agent.hardware.gpus import driver_version, told
from landreeve_agent.hardware.inventory import Accelerator
from landreeve_agent.hardware.libraries import Libraries
from landreeve_agent.hardware.nodes import Node, open_node

_INTEL_IDS = {
    "0x7d1d": "Meteor Lake", "0xad1d": "Arrow Lake", "0x643e": "Lunar Lake", "0xb03e": "Panther Lake",
    "0xfd3e": "Wildcat Lake", "0xd71d": "Nova Lake",
}  # fmt: skip
_INTEL_FACTS = (
    "npu_busy_time_us", "npu_memory_utilization", "npu_current_frequency_mhz", "npu_max_frequency_mhz", "sched_mode",
)  # fmt: skip
_AMD_NAMES = {
    "RyzenAI-npu1": "Phoenix",
    "RyzenAI-npu4": "Strix",
    "RyzenAI-npu5": "Strix Halo",
    "RyzenAI-npu6": "Krackan",
}
_ROCKCHIPS = {
    "rockchip,rk3588": "RK3588", "rockchip,rk3588s": "RK3588S", "rockchip,rk3576": "RK3576",
    "rockchip,rk3568": "RK3568", "rockchip,rk3566": "RK3566", "rockchip,rk3562": "RK3562",
}  # fmt: skip


def read_npus(root: Path, libraries: Libraries) -> Iterator[Accelerator]:
    """Every NPU of the tree under ``root`` that has its driver in the kernel, or that the device tree names."""
    found = []
    for entry in children(root / "sys/class/accel", "accel[0-9]*"):
        match link_name(entry / "device/driver"):
            case "intel_vpu":
                found.append(_intel(root, entry, libraries))
            case "amdxdna":
                found.append(_amd(root, entry, libraries))
            case "rocket":
                found.append(_rocket(root, entry, libraries))
    yield from found
    yield from _unbound_pci(root)
    if not any(npu.vendor == "Rockchip" for npu in found):
        yield from _rockchip(root, libraries)


def _intel(root: Path, entry: Path, libraries: Libraries) -> Accelerator:
    device = entry / "device"
    slot, generation = link_name(device), _INTEL_IDS.get(read_text(device / "device"))
    node = open_node(root, f"dev/accel/{entry.name}", "render")
    missing = libraries.missing("libze_loader.so.1", "libze_intel_npu.so.1")
    if not node.problem and missing:
        node = Node(node.path, f"{missing} is missing", "install level-zero and intel-level-zero-npu")
    return Accelerator(
        id=f"pci:{slot}", kind="npu", vendor="Intel", name=f"Intel NPU ({generation})" if generation else "Intel NPU",
        pci=slot, driver="intel_vpu", driver_version=driver_version(root, "intel_vpu"),
        firmware=_intel_firmware(root, entry.name, slot), library=libraries.version("libze_intel_npu.so.1"),
        node=node.path, usable=not node.problem, problem=node.problem, fix=node.fix,
        facts=told({name: read_text(device / name) for name in _INTEL_FACTS}),
    )  # fmt: skip


def _intel_firmware(root: Path, entry: str, slot: str) -> str:
    """The version the driver loaded, which only root may read: ``20250306*MTL_CLIENT_SILICON-release*…``."""
    for name in (slot, entry.removeprefix("accel")):
        version = read_text(root / "sys/kernel/debug/accel" / name / "fw_version")
        if version:
            return version.split("*")[0]
    return ""


def _amd(root: Path, entry: Path, libraries: Libraries) -> Accelerator:
    device = entry / "device"
    slot, board = link_name(device), read_text(device / "vbnv")
    node = open_node(root, f"dev/accel/{entry.name}", "render")
    if not node.problem and libraries.missing("libxrt_coreutil.so.2"):
        node = Node(node.path, "libxrt_coreutil.so.2 is missing", "install XRT with its amdxdna plugin")
    family = f" ({_AMD_NAMES[board]})" if board in _AMD_NAMES else ""
    return Accelerator(
        id=f"pci:{slot}", kind="npu", vendor="AMD", name=f"AMD {board or 'XDNA NPU'}{family}", pci=slot,
        driver="amdxdna", driver_version=driver_version(root, "amdxdna"), firmware=read_text(device / "fw_version"),
        library=libraries.version("libxrt_coreutil.so.2"), node=node.path, usable=not node.problem,
        problem=node.problem, fix=node.fix, facts=told({"device_type": read_text(device / "device_type")}),
    )  # fmt: skip


def _unbound_pci(root: Path) -> Iterator[Accelerator]:
    """NPUs that the kernel sees on the bus but has no driver for."""
    for device in children(root / "sys/bus/pci/devices"):
        if read_text(device / "vendor") != "0x8086" or link_name(device / "driver"):
            continue
        generation = _INTEL_IDS.get(read_text(device / "device"))
        if generation:
            yield Accelerator(
                id=f"pci:{device.name}", kind="npu", vendor="Intel", name=f"Intel NPU ({generation})",
                pci=device.name, problem="no driver is bound",
                fix="load the module intel_vpu (Linux 6.6 or newer) and see that its firmware is installed",
            )  # fmt: skip


def _rocket(root: Path, entry: Path, libraries: Libraries) -> Accelerator:
    node = open_node(root, f"dev/accel/{entry.name}", "render")
    if not node.problem and libraries.missing("libteflon.so"):
        node = Node(node.path, "libteflon.so is missing", "install Mesa's Teflon delegate")
    return Accelerator(
        id="of:npu", kind="npu", vendor="Rockchip", name=f"Rockchip {_rockchip_chip(root)} NPU".replace("  ", " "),
        driver="rocket", driver_version=driver_version(root, "rocket"), node=node.path, usable=not node.problem,
        problem=node.problem, fix=node.fix,
        facts=told({"cores": str(len(children(root / "sys/bus/platform/drivers/rocket", "*.npu")) or "")}),
    )  # fmt: skip


def _rockchip_chip(root: Path) -> str:
    compatible = read_strings(root / "proc/device-tree/compatible")
    return next((name for key, name in _ROCKCHIPS.items() if key in compatible), "")


def _rockchip(root: Path, libraries: Libraries) -> Iterator[Accelerator]:
    """A board of Rockchip's with the maker's own driver, or with none."""
    chip = _rockchip_chip(root)
    if not chip:
        return
    bound = children(root / "sys/bus/platform/drivers/RKNPU", "*.npu")
    node = _rknpu_node(root, libraries) if bound else _no_rknpu()
    told_version = read_text(root / "sys/kernel/debug/rknpu/version").rpartition("v")[2]
    yield Accelerator(
        id="of:npu", kind="npu", vendor="Rockchip", name=f"Rockchip {chip} NPU", driver="RKNPU" if bound else "",
        driver_version=told_version or driver_version(root, "rknpu"), library=libraries.version("librknnrt.so"),
        node=node.path, usable=not node.problem, problem=node.problem, fix=node.fix,
    )  # fmt: skip


def _no_rknpu() -> Node:
    return Node("", "no driver is bound", "boot the board maker's kernel (rknpu) or Linux 6.18 or newer (rocket)")


def _rknpu_node(root: Path, libraries: Libraries) -> Node:
    if link_name(root / "dev/rknpu"):
        # The library then takes the render node for the other interface and crashes.
        return Node("/dev/rknpu", "/dev/rknpu is a symbolic link, which crashes librknnrt", "remove the link")
    for render in children(root / "sys/class/drm", "renderD*"):
        if variables(read_text(render / "device/uevent")).get("DRIVER") == "RKNPU":
            node = open_node(root, f"dev/dri/{render.name}", "render")
            break
    else:
        node = open_node(root, "dev/rknpu", "render")
    if not node.problem and libraries.missing("librknnrt.so"):
        return Node(node.path, "librknnrt.so is missing", "install Rockchip's runtime (rknpu2)")
    return node
