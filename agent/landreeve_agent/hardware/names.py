"""Products' names from the list of PCI ids that Debian's pci.ids package keeps, where no driver tells a better one."""

from pathlib import Path

import msgspec

from landreeve_agent.hardware.files import read_text
from landreeve_agent.hardware.inventory import Accelerator

_LISTS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")


def named(root: Path, accelerators: tuple[Accelerator, ...]) -> tuple[Accelerator, ...]:
    """The same with names for those that only have a number. Reads a file of 1.4 MB, so not for every look."""
    return tuple(_named(root, a) if a.pci and a.name == _number(root, a) else a for a in accelerators)


def _number(root: Path, accelerator: Accelerator) -> str:
    return f"{accelerator.vendor} GPU {read_text(_folder(root, accelerator) / 'device')}"


def _folder(root: Path, accelerator: Accelerator) -> Path:
    return root / "sys/bus/pci/devices" / accelerator.pci


def _named(root: Path, accelerator: Accelerator) -> Accelerator:
    folder = _folder(root, accelerator)
    product = pci_name(root, read_text(folder / "vendor"), read_text(folder / "device"))
    return msgspec.structs.replace(accelerator, name=f"{accelerator.vendor} {product}") if product else accelerator


def pci_name(root: Path, vendor: str, device: str) -> str:
    """A PCI device's name for two numbers as sysfs writes them (``0x8086``); empty when no list knows it."""
    wanted, inside = (vendor.removeprefix("0x").lower(), device.removeprefix("0x").lower()), False
    for path in _LISTS:
        try:
            with (root / path).open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line[:1] not in "\t#\n":
                        inside = line.startswith(wanted[0])
                    elif inside and line.startswith(f"\t{wanted[1]}"):
                        return line.strip().partition("  ")[2]
        except OSError:
            continue
    return ""
