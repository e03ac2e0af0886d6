"""GPUs, from PCI, drm and the device tree in sysfs and procfs; NVIDIA's own library is asked elsewhere (`nvml`).

Sources: Linux ``Documentation/ABI/testing/sysfs-bus-pci``, ``Documentation/gpu/amdgpu/driver-misc.rst``
(mem_info_vram_total), ``drivers/gpu/drm/amd/amdkfd/kfd_topology.c`` (gfx_target_version, location_id); the OpenVINO
GPU plugin needs ``libOpenCL.so.1`` and an ICD; on a Jetson the nodes belong to the group ``video``.
"""

from collections.abc import Iterator
from pathlib import Path

from landreeve_agent.hardware.files import children, fields, link_name, read_number, read_strings, read_text
from landreeve_agent.hardware.inventory import Accelerator
from landreeve_agent.hardware.libraries import Libraries
from landreeve_agent.hardware.nodes import Node, open_node, unbound

NVIDIA, INTEL, AMD = "0x10de", "0x8086", "0x1002"
_DISPLAY = "0x03"
_JETSONS = {
    "nvidia,tegra264": "Thor", "nvidia,tegra234": "Orin", "nvidia,tegra194": "Xavier", "nvidia,tegra186": "TX2",
    "nvidia,tegra210": "Nano",
}  # fmt: skip
_JETSON_NODES = ("dev/nvgpu/igpu0/ctrl", "dev/nvhost-gpu")


def read_gpus(root: Path, libraries: Libraries) -> Iterator[Accelerator]:
    """Every GPU of the tree under ``root`` that a runtime of ours could use."""
    for device in children(root / "sys/bus/pci/devices"):
        if read_text(device / "class").startswith(_DISPLAY):
            match read_text(device / "vendor"):
                case "0x10de":
                    yield _nvidia(root, device, libraries)
                case "0x8086":
                    yield _intel(root, device, libraries)
                case "0x1002":
                    yield _amd(root, device)
    yield from _jetson(root)


def _nvidia(root: Path, device: Path, libraries: Libraries) -> Accelerator:
    driver = link_name(device / "driver")
    version = _nvidia_version(read_text(root / "proc/driver/nvidia/version"))
    library = libraries.version("libcuda.so.1")
    told = fields(read_text(root / "proc/driver/nvidia/gpus" / device.name / "information"))
    node = _nvidia_node(root, driver, version, library, told.get("Device Minor", "0"))
    return Accelerator(
        id=f"pci:{device.name}", kind="gpu", vendor="NVIDIA", pci=device.name,
        name=told.get("Model") or f"NVIDIA GPU {read_text(device / 'device')}",
        driver=driver, driver_version=version, library=library, firmware=told.get("GPU Firmware", ""),
        node=node.path, usable=not node.problem, problem=node.problem, fix=node.fix,
    )  # fmt: skip


def _nvidia_node(root: Path, driver: str, version: str, library: str, minor: str) -> Node:
    """What stands in CUDA's way, in the order in which it would meet it."""
    if driver != "nvidia":
        return unbound(driver, "nvidia", "install NVIDIA's driver")
    if not version:
        return Node("", "the driver does not answer in /proc/driver/nvidia", "reload the module nvidia, or restart")
    if library and library != version:
        return Node("", f"driver {version} and library {library} differ", "restart to load the driver just installed")
    nodes = [open_node(root, f"dev/{name}", "video") for name in ("nvidiactl", "nvidia-uvm", f"nvidia{minor}")]
    blocked = next((node for node in nodes if node.problem), None)
    if blocked is not None and blocked.path == "/dev/nvidia-uvm" and blocked.problem.endswith("missing"):
        return Node(blocked.path, blocked.problem, "run nvidia-modprobe -u, or pass the node to the container")
    return blocked or nodes[-1]


def _nvidia_version(text: str) -> str:
    """The version in ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu …``."""
    words = fields(text).get("NVRM version", "").split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "")


def _intel(root: Path, device: Path, libraries: Libraries) -> Accelerator:
    driver = link_name(device / "driver")
    node = _render_node(root, device, driver, ("i915", "xe"), "load the module xe or i915")
    if not node.problem:
        node = _intel_libraries(root, libraries) or node
    facts = {"frequency_max_mhz": str(read_number(_first(device, "drm/card*/gt_max_freq_mhz")) or "")}
    return Accelerator(
        id=f"pci:{device.name}", kind="gpu", vendor="Intel", name=f"Intel GPU {read_text(device / 'device')}",
        pci=device.name, driver=driver, driver_version=driver_version(root, driver),
        library=libraries.version("libigdrcl.so") or libraries.version("libze_intel_gpu.so.1"),
        node=node.path, usable=not node.problem, problem=node.problem, fix=node.fix, facts=told(facts),
    )  # fmt: skip


def _intel_libraries(root: Path, libraries: Libraries) -> Node | None:
    if libraries.missing("libOpenCL.so.1"):
        return Node("", "libOpenCL.so.1 is missing", "install ocl-icd-libopencl1 and intel-opencl-icd")
    if not children(root / "etc/OpenCL/vendors", "intel*.icd"):
        return Node("", "no OpenCL driver of Intel is registered in /etc/OpenCL/vendors", "install intel-opencl-icd")
    return None


def _amd(root: Path, device: Path) -> Accelerator:
    driver = link_name(device / "driver")
    node = _render_node(root, device, driver, ("amdgpu",), "load the module amdgpu")
    kfd = open_node(root, "dev/kfd", "render")
    if not node.problem and kfd.problem:
        node = kfd  # ROCm opens it before the render node
    facts = {
        "gfx": _gfx(root, device.name),
        "busy_percent": read_text(device / "gpu_busy_percent"),
        "shared_bytes": read_text(device / "mem_info_gtt_total"),
    }
    return Accelerator(
        id=f"pci:{device.name}", kind="gpu", vendor="AMD",
        name=read_text(device / "product_name") or f"AMD GPU {read_text(device / 'device')}",
        pci=device.name, driver=driver, driver_version=driver_version(root, driver),
        firmware=read_text(device / "vbios_version"), node=node.path,
        memory_bytes=read_number(device / "mem_info_vram_total"), usable=not node.problem, problem=node.problem,
        fix=node.fix, facts=told(facts),
    )  # fmt: skip


def _gfx(root: Path, slot: str) -> str:
    """The instruction set's name as ROCm writes it, ``gfx1103``, found by the PCI location of the kfd node."""
    domain, bus, rest = slot.split(":")
    number, _, function = rest.partition(".")
    location = (int(bus, 16) << 8) | (int(number, 16) << 3) | int(function)
    for node in children(root / "sys/class/kfd/kfd/topology/nodes"):
        lines = (line.split() for line in read_text(node / "properties").splitlines())
        found = {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
        version = found.get("gfx_target_version", 0)
        if version and found.get("location_id") == location and found.get("domain", 0) == int(domain, 16):
            return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return ""


def _render_node(root: Path, device: Path, driver: str, expected: tuple[str, ...], fix: str) -> Node:
    if driver not in expected:
        return unbound(driver, " or ".join(expected), fix)
    render = children(device / "drm", "renderD*")
    if not render:
        return Node("", "the driver offers no render node", "see the kernel's log: its firmware may be missing")
    return open_node(root, f"dev/dri/{render[0].name}", "render")


def _jetson(root: Path) -> Iterator[Accelerator]:
    compatible = read_strings(root / "proc/device-tree/compatible")
    chip = next((name for name in _JETSONS if name in compatible), "")
    if not chip:
        return
    model = "".join(read_strings(root / "proc/device-tree/model")[:1])
    driver = next((name for name in ("nvgpu", "nvidia") if (root / "sys/module" / name).is_dir()), "")
    node = _jetson_node(root, driver)
    facts = {"chip": _JETSONS[chip], "dla": str(len(children(root / "dev", "nvhost-ctrl-nvdla*")) or "")}
    yield Accelerator(
        id="of:gpu", kind="gpu", vendor="NVIDIA", name=f"{model or f'Jetson {_JETSONS[chip]}'} GPU", driver=driver,
        driver_version=_l4t(read_text(root / "etc/nv_tegra_release")), node=node.path, usable=not node.problem,
        problem=node.problem, fix=node.fix, facts=told(facts),
    )  # fmt: skip


def _jetson_node(root: Path, driver: str) -> Node:
    if not driver:
        return Node("", "the driver nvgpu is not loaded", "boot NVIDIA's own kernel (Jetson Linux)")
    node = next((path for path in _JETSON_NODES if (root / path).exists()), _JETSON_NODES[0])
    memory = open_node(root, "dev/nvmap", "video")
    return memory if memory.problem else open_node(root, node, "video")


def _l4t(text: str) -> str:
    """The release in ``# R36 (release), REVISION: 4.3, GCID: …``.

    >>> _l4t("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic")
    '36.4.3'
    """
    words = text.replace(",", " ").split()
    if "REVISION:" not in words[:-1] or len(words) < 2:
        return ""
    return f"{words[1].removeprefix('R')}.{words[words.index('REVISION:') + 1]}"


def driver_version(root: Path, driver: str) -> str:
    """The driver's own version; one that comes with the kernel has none but the kernel's."""
    return read_text(root / "sys/module" / driver / "version") if driver else ""


def told(facts: dict[str, str]) -> dict[str, str]:
    """Without what the driver did not tell."""
    return {name: value for name, value in facts.items() if value}


def _first(folder: Path, pattern: str) -> Path:
    return next(iter(children(folder, pattern)), folder / "none")
