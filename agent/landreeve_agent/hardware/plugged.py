"""Accelerators that are plugged in: Hailo (M.2, HAT) and Coral (USB, M.2).

A Hailo library refuses a driver of any other version (its status 76), so both are compared here before anybody opens
the device. A Coral on USB has the maker's id until a library loads its firmware, then Google's: the port stays.
Sources: hailort-drivers ``linux/pcie/src/{pcie.h,sysfs.c}``; gasket-driver ``apex_driver.c``; issues
roflcoopter/viseron 1490, google-coral/edgetpu 498 and 536.
"""

from collections.abc import Iterator
from pathlib import Path

from landreeve_agent.hardware.files import children, link_name, read_text
from landreeve_agent.hardware.gpus import driver_version, told
from landreeve_agent.hardware.inventory import Accelerator
from landreeve_agent.hardware.libraries import Libraries
from landreeve_agent.hardware.nodes import Node, open_node

# PCI device, its name, and the module that drives it.
_HAILOS = {
    "0x2864": ("Hailo-8", "hailo_pci"),
    "0x45c4": ("Hailo-10H", "hailo1x_pci"),
    "0x43a2": ("Hailo-15L", "hailo1x_pci"),
}
_HAILO, _CORAL_PCI = "0x1e60", ("0x1ac1", "0x089a")
_CORAL_USB = {("1a6e", "089a"): False, ("18d1", "9302"): True}  # whether the firmware is loaded


def read_plugged(root: Path, libraries: Libraries) -> Iterator[Accelerator]:
    """Every Hailo and Coral of the tree under ``root``."""
    for device in children(root / "sys/bus/pci/devices"):
        vendor, number = read_text(device / "vendor"), read_text(device / "device").lower()
        if vendor == _HAILO and number in _HAILOS:
            yield _hailo(root, device, libraries, *_HAILOS[number])
        elif (vendor, number) == _CORAL_PCI:
            yield _coral_pci(root, device, libraries)
    for device in children(root / "sys/bus/usb/devices"):
        loaded = _CORAL_USB.get((read_text(device / "idVendor"), read_text(device / "idProduct")))
        if loaded is not None:
            yield _coral_usb(root, device, libraries, loaded)


def _hailo(root: Path, device: Path, libraries: Libraries, name: str, module: str) -> Accelerator:
    driver = link_name(device / "driver")
    version, library = read_text(root / "sys/module" / module / "version"), libraries.version("libhailort.so")
    node = _hailo_node(root, device, driver, version, library)
    return Accelerator(
        id=f"pci:{device.name}", kind="npu", vendor="Hailo", name=name, pci=device.name, driver=driver and module,
        driver_version=version, library=library, firmware=_hailo_firmware(root), node=node.path,
        usable=not node.problem, problem=node.problem, fix=node.fix,
    )  # fmt: skip


def _hailo_node(root: Path, device: Path, driver: str, version: str, library: str) -> Node:
    if not driver:
        return Node("", "no driver is bound", "install hailort-pcie-driver (hailo-dkms) for the running kernel")
    if not library:
        return Node("", "libhailort.so is missing", f"install hailort {version}".rstrip())
    if version and version != library:
        return Node(
            "", f"driver {version} and library {library} differ, which HailoRT refuses (76)",
            "install hailort and its driver in the same version",
        )  # fmt: skip
    for entry in children(root / "sys/class/hailo_chardev", "hailo[0-9]*"):
        if read_text(entry / "board_location") == device.name:
            return open_node(root, f"dev/{entry.name}", "hailo")
    return open_node(root, "dev/hailo0", "hailo")


def _hailo_firmware(root: Path) -> str:
    """The version in the name of the firmware file, ``hailo8_fw.4.20.0.bin``."""
    for file in children(root / "lib/firmware/hailo", "hailo8_fw.*.bin"):
        return file.name.removeprefix("hailo8_fw.").removesuffix(".bin")
    return ""


def _coral_pci(root: Path, device: Path, libraries: Libraries) -> Accelerator:
    driver = link_name(device / "driver")
    entry = next((e for e in children(root / "sys/class/apex") if link_name(e / "device") == device.name), None)
    node = _coral_node(root, driver, entry)
    if not node.problem:
        node = _edgetpu(libraries) or node
    facts = {name: read_text(entry / name) for name in ("temp", "status", "framework_version")} if entry else {}
    return Accelerator(
        id=f"pci:{device.name}", kind="npu", vendor="Google", name="Coral Edge TPU (PCIe)", pci=device.name,
        driver=driver, driver_version=driver_version(root, "apex") or driver_version(root, "gasket"),
        library=libraries.version("libedgetpu.so.1"), node=node.path, usable=not node.problem, problem=node.problem,
        fix=node.fix, facts=told(facts),
    )  # fmt: skip


def _coral_node(root: Path, driver: str, entry: Path | None) -> Node:
    if driver != "apex":
        return Node("", "no driver is bound", "install gasket-dkms for the running kernel and load the module apex")
    return open_node(root, f"dev/{entry.name}" if entry else "dev/apex_0", "apex")


def _coral_usb(root: Path, device: Path, libraries: Libraries, loaded: bool) -> Accelerator:
    bus, number = _decimal(device / "busnum"), _decimal(device / "devnum")
    node = open_node(root, f"dev/bus/usb/{bus:03}/{number:03}", "plugdev")
    if not node.problem:
        node = _edgetpu(libraries) or node
    speed = _decimal(device / "speed")
    facts = {
        "firmware_loaded": "yes" if loaded else "no: the library loads it at the first use",
        "speed_mbit": str(speed or ""),
        "advice": "" if speed >= 5000 or not speed else "on a USB 2 port: a USB 3 port is several times faster",
    }
    return Accelerator(
        id=f"usb:{device.name}", kind="npu", vendor="Google", name="Coral Edge TPU (USB)", driver="usb",
        library=libraries.version("libedgetpu.so.1"), node=node.path, usable=not node.problem, problem=node.problem,
        fix=node.fix, facts=told(facts),
    )  # fmt: skip


def _edgetpu(libraries: Libraries) -> Node | None:
    if libraries.missing("libedgetpu.so.1"):
        return Node("", "libedgetpu.so.1 is missing", "install libedgetpu1-std")
    return None


def _decimal(path: Path) -> int:
    """A decimal number that may have leading zeros; 0 when there is none."""
    text = read_text(path)
    return int(text) if text.isdigit() else 0
