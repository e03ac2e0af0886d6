"""Firmware as a component: two slots, of which one runs, and a boot loader that gives a new one a bounded try.

The port (`Slots`) is what RAUC, systemd-boot's boot counting and U-Boot's bootcount have in common: the slot that does
not run is written; it is marked to be tried; the boot loader counts its tries and boots the other one again when they
are used up; one that proved itself is confirmed. ACTIVATING marks it and boots, and this process ends with the system;
the machine goes on in whichever slot comes up. Coming up in the old one, after a boot, is the new one's failure, and it
is told. A new firmware is on PROBATION until the hub has acknowledged something and the models serve, like a new agent;
only then is it confirmed. What makes a system boot that hangs with nobody to boot it is the board's watchdog, not ours.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec
from landreeve.release.manifest import IMAGE_SUFFIXES

from landreeve_agent.link.transfer import FetchFailedError
from landreeve_agent.store.stamps import stamp
from landreeve_agent.update import directing, machine
from landreeve_agent.update.effects import NOTHING, CannotServeError, Learnt, Say
from landreeve_agent.update.install import Installer
from landreeve_agent.update.itself import Health, judge
from landreeve_agent.update.machine import Outcome
from landreeve_agent.update.probation import Fail, Pass, Wait
from landreeve_agent.update.slotbook import (
    MOST_BOOTS,
    Asked,
    Book,
    Kept,
    Proving,
    beside,
    came_back,
    holding,
    written,
)
from landreeve_agent.update.standing import Order, Phase, State
from landreeve_agent.update.stepping import Step

logger = logging.getLogger(__name__)

_LEAVING_S = 120.0


class SlotsError(Exception):
    """The slots cannot be read, written or switched; the text says which and why."""


class SlotStatus(msgspec.Struct, frozen=True):
    """``booted`` is the slot that runs, ``primary`` the one that boots when nothing is tried, ``slots`` all there are.
    ``trying`` is the slot that boots next, or runs, without being confirmed; empty when there is none. ``boot`` names
    the running boot, where the kernel's own name of it says nothing (in a container, say)."""

    booted: str
    primary: str
    slots: tuple[str, ...]
    trying: str = ""
    boot: str = ""


class Slots(Protocol):
    """The slots of this box. Each call may be repeated; each raises `SlotsError`."""

    async def status(self) -> SlotStatus:
        """How they stand."""

    async def write(self, slot: str, image: Path) -> None:
        """Put an image into a slot that does not run; done when it is on the disk and verified."""

    async def try_once(self, slot: str) -> None:
        """Boot it next; the boot loader returns to the primary one unless it is confirmed in the tries it has."""

    async def confirm(self, slot: str) -> None:
        """From now on this one boots, and nothing is tried any more."""

    async def reboot(self) -> None:
        """Boot the system. Returns when it has been asked for."""


@dataclass(frozen=True)
class FirmwareEffects:
    """``slots`` is None where this box has no firmware of ours. ``boot`` names the running boot, ``uptime`` are
    seconds that go on through it (s), ``health`` tells whether the box does what it is for."""

    installer: Installer
    slots: Slots | None
    book: Book
    health: Callable[[], Awaitable[Health]]
    clock: Callable[[], datetime]
    boot: Callable[[], str]
    uptime: Callable[[], float] = time.monotonic

    async def fetch(self, state: State, order: Order, say: Say) -> Outcome:
        """The image, unless a slot holds it."""
        if self.slots is None:
            sentence = "This box has no firmware slots that the agent may write (firmware.slots_command is not set)."
            return machine.Failed(order.generation, "no_firmware", sentence)
        if holding((await self._kept()).written, order.release):
            return machine.Staged(order.generation)
        try:
            await self.installer.install(order, lambda done, whole: say(_fetching(order, done, whole)))
        except FetchFailedError as error:
            return machine.Failed(order.generation, error.cause, error.sentence)
        return machine.Staged(order.generation)

    async def prove(self, state: State, order: Order) -> tuple[Outcome, Learnt]:
        """Write it into the slot that does not run, and let that be verified."""
        try:
            slot = await self._put(order)
        except SlotsError as error:
            return machine.Failed(order.generation, "slot_not_written", f"{error}"), NOTHING
        except _UnfitError as error:
            return machine.Failed(order.generation, error.cause, str(error)), NOTHING
        return machine.Proven(order.generation, msgspec.json.encode({"slot": slot}).decode()), Learnt({"slot": slot})

    async def activate(self, state: State, order: Order) -> Outcome | None:
        """Mark it to be tried and boot; in the new boot this is asked again."""
        kept = await self._kept()
        slot = holding(kept.written, order.release)
        if self.slots is None or not slot:
            text = f"No slot of this box holds firmware {order.version}."
            return machine.Failed(order.generation, "slot_lost", text)
        try:
            status = await self.slots.status()
            if status.booted == slot:
                return machine.Activated(order.generation, stamp(self.clock()))
            boot = status.boot or self.boot()
            if came_back(kept, order.release, order.generation, boot):
                text = f"Firmware {order.version} did not come up: the boot loader went back to slot {status.booted}."
                return machine.Failed(order.generation, "did_not_boot", text)
            await self.slots.try_once(slot)
            await self._keep(msgspec.structs.replace(kept, asked=Asked(order.release, order.generation, boot)))
            await self._reboot(self.slots)
        except SlotsError as error:
            return machine.Failed(order.generation, "cannot_switch", f"{error}")
        return None

    async def look(self, state: State, order: Order) -> tuple[Pass | Fail | Wait | Step, dict[str, Any]]:
        """Whether the new firmware still runs, reached the hub and serves what was served; confirmed when it did."""
        if self.slots is None:
            return Fail("no_firmware", "This box has no firmware slots any more."), {}
        health = await self.health()
        figures = {"health": msgspec.to_builtins(health)}
        kept = await self._kept()
        slot = holding(kept.written, order.release)
        try:
            status = await self.slots.status()
            if status.booted != slot:
                text = f"Firmware {order.version} came up and was left again: slot {status.booted} runs."
                return Fail("fell_back", text), figures
            verdict = judge(health, await self._proving_s(kept, status.boot or self.boot()), order, "firmware")
            if isinstance(verdict, Pass):
                await self.slots.confirm(slot)
        except SlotsError as error:
            return Wait(f"{error}"), figures
        return verdict, figures

    async def direct(self, state: State) -> None:
        """Let the slot run, and boot from now on, which the state says."""
        if self.slots is None or state.phase is Phase.PROBATION:
            return
        kept = await self._kept()
        try:
            status = await self.slots.status()
            slot = _wanted(state, kept.written, status)
            if not slot:
                return
            if status.primary != slot or status.trying:
                await self.slots.confirm(slot)
            if status.booted == slot:
                await self._keep(msgspec.structs.replace(kept, boots=0, boots_for=""))
                return
            await self._boot_again(self.slots, kept, slot)
        except (SlotsError, OSError) as error:
            raise CannotServeError(str(error)) from error

    async def clean(self, state: State) -> None:
        """Remove images: what a slot holds needs no file. One that failed is written anew if it is ordered again."""
        if self.slots is None:
            return
        await asyncio.to_thread(self.installer.clean, state.model, frozenset[str]())
        kept = await self._kept()
        slot = holding(kept.written, state.order.release) if state.order is not None else ""
        if slot and state.phase in {Phase.ROLLED_BACK, Phase.REJECTED}:
            await self._keep(written(kept, slot, ""))

    async def _proving_s(self, kept: Kept, boot: str) -> float:
        """How long this boot has been proving the firmware, however often the agent was started in it."""
        now = self.uptime()
        if kept.proving is None or kept.proving.boot != boot:
            kept = msgspec.structs.replace(kept, proving=Proving(boot, now))
            await self._keep(kept)
        return now - kept.proving.since_s if kept.proving else 0.0

    async def _put(self, order: Order) -> str:
        """The slot that holds the order's image, written if need be."""
        if self.slots is None:
            raise SlotsError("this box has no firmware slots")
        kept, status = await self._kept(), await self.slots.status()
        if slot := holding(kept.written, order.release):
            return slot
        if status.primary != status.booted:
            text = (
                f"Slot {status.booted} runs without being confirmed; slot {status.primary} is the way back and is kept."
            )
            raise _UnfitError("slots_unsettled", text)
        slot = beside(status.slots, status.booted)
        if not slot:
            raise _UnfitError("one_slot", f"There is no slot beside {status.booted} to write to.")
        image = _image(self.installer.folder(order.model, order.release))
        # Forgotten first: a write that a power cut ends must not be taken for the image it was to be.
        await self._keep(written(kept, slot, ""))
        await self.slots.write(slot, image)
        await self._keep(written(kept, slot, order.release))
        return slot

    async def _boot_again(self, slots: Slots, kept: Kept, slot: str) -> None:
        """Boot into a slot that was proven before, a bounded number of times: one that no longer comes up must not
        keep the box booting."""
        boots = kept.boots if kept.boots_for == slot else 0
        if boots >= MOST_BOOTS:
            raise CannotServeError(f"slot {slot} did not come up in {boots} boots")
        await self._keep(msgspec.structs.replace(kept, boots=boots + 1, boots_for=slot))
        await self._reboot(slots)
        raise CannotServeError(f"slot {slot} is to run, and the system did not boot yet")

    async def _reboot(self, slots: Slots) -> None:
        logger.warning("the system boots to run another slot")
        await slots.reboot()
        await asyncio.sleep(_LEAVING_S)

    async def _kept(self) -> Kept:
        return await asyncio.to_thread(self.book.read)

    async def _keep(self, kept: Kept) -> None:
        await asyncio.to_thread(self.book.write, kept)


class _UnfitError(Exception):
    """The release or the slots do not allow it; ``cause`` for machines."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause


def _wanted(state: State, kept: Mapping[str, str], status: SlotStatus) -> str:
    """The slot that is to run by the state; empty when nothing is known against the one that does.

    What the box came with was written by nobody here, and a book that was lost names nothing: then the way back is the
    primary slot while another is tried, else the one that does not hold what is refused.
    """
    active = directing.serving(state).active
    if active is not None and (slot := holding(kept, active.release)):
        return slot
    if state.phase not in {Phase.ROLLING_BACK, Phase.ROLLBACK_FAILED, Phase.ROLLED_BACK}:
        return ""
    if status.booted != status.primary:
        return status.primary
    runs = kept.get(status.booted, "")
    if runs and state.order is not None and runs == state.order.release and active is None:
        return beside(status.slots, status.booted)
    if runs and active is not None:
        raise SlotsError(f"no slot holds firmware {active.version} any more")
    return status.booted


def _image(folder: Path) -> Path:
    """The one image of a release."""
    found = [path for path in folder.rglob("*") if path.suffix in IMAGE_SUFFIXES]
    if len(found) != 1:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise _UnfitError("bad_release", f"The release holds {len(found)} images ({known}); it must hold one.")
    return found[0]


def _fetching(order: Order, done: int, whole: int) -> str:
    return f"Fetching firmware {order.version}: {done // 2**20} of {whole // 2**20} MiB."
