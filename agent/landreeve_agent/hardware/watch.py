"""What changed in a box between two looks: devices that came, went or became usable, and the budget of threads. Pure.

Looking costs some milliseconds of file reads, so it is done every few seconds; no udev is needed, which containers
do not have.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from landreeve_agent.hardware.inventory import Accelerator, Inventory

What = Literal["appeared", "vanished", "changed", "budget"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is different now. ``device`` is the accelerator as it is, or was before it vanished; None when
    the budget changed."""

    what: What
    sentence: str
    device: Accelerator | None = None


def changes(before: Inventory, after: Inventory, names: Mapping[str, str] | None = None) -> tuple[Change, ...]:
    """What is different between two looks; figures that always move (heat, busy time) are no difference.

    ``names`` gives devices better names, by their ids.
    """
    old, new = (_renamed(looked.accelerators, names or {}) for looked in (before, after))
    return (*_devices(old, new), *_budget(before, after))


def _renamed(devices: tuple[Accelerator, ...], names: Mapping[str, str]) -> dict[str, Accelerator]:
    return {a.id: msgspec.structs.replace(a, name=names.get(a.id, a.name)) for a in devices}


def _devices(old: dict[str, Accelerator], new: dict[str, Accelerator]) -> Iterator[Change]:
    for name in sorted(old.keys() - new.keys()):
        yield Change(what="vanished", sentence=f"{_called(old[name])} is gone.", device=old[name])
    for name, device in new.items():
        if name not in old:
            yield Change(what="appeared", sentence=f"{_called(device)} is there now{_but(device)}.", device=device)
        elif _state(device) != _state(old[name]):
            yield Change(what="changed", sentence=_changed(old[name], device), device=device)


def _changed(before: Accelerator, after: Accelerator) -> str:
    if before.usable and not after.usable:
        return f"{_called(after)} cannot be used any more: {after.trouble}."
    if after.usable and not before.usable:
        return f"{_called(after)} can be used now."
    return f"{_called(after)} changed: {_difference(before, after)}{_but(after)}."


def _difference(before: Accelerator, after: Accelerator) -> str:
    names = ("driver", "driver_version", "firmware", "library", "node")
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in names)
    told = [f"{name.replace('_', ' ')} {was or 'none'} → {now or 'none'}" for name, was, now in pairs if was != now]
    return ", ".join(told) or "its state"


def _state(device: Accelerator) -> tuple[object, ...]:
    return (
        device.driver, device.driver_version, device.firmware, device.library, device.node, device.usable,
        device.problem, device.facts.get("firmware_loaded"),
    )  # fmt: skip


def _called(device: Accelerator) -> str:
    return f"{device.name} ({device.pci or device.id})"


def _but(device: Accelerator) -> str:
    return f", but not usable: {device.trouble}" if device.problem else ""


def _budget(before: Inventory, after: Inventory) -> Iterator[Change]:
    if before.threads != after.threads:
        now = f"{after.threads} thread" + ("" if after.threads == 1 else "s")
        yield Change(what="budget", sentence=f"This box may use {now} now, it was {before.threads}.")
