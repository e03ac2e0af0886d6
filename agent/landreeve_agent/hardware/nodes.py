"""Device nodes: whether they are there and may be opened, and what to do when not."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """A device node; ``problem`` and ``fix`` are empty when it may be opened."""

    path: str
    problem: str = ""
    fix: str = ""


def open_node(root: Path, relative: str, group: str) -> Node:
    """Judges ``/relative`` by its mode, without opening it: opening can wake or reset a device."""
    path, shown = root / relative, f"/{relative}"
    if not path.exists():
        return Node(shown, f"{shown} is missing", "load the driver's module, or pass the device to the container")
    if not os.access(path, os.R_OK | os.W_OK):
        return Node(shown, f"no permission for {shown}", f"add the service's user to the group {group!r}")
    return Node(shown)


def unbound(driver: str, expected: str, fix: str) -> Node:
    """No node, because the wrong driver or none is bound to the device."""
    return Node("", f"the driver {driver!r} is bound" if driver else "no driver is bound", f"{fix} ({expected})")
