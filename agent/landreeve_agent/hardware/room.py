"""The supervisor's room that knows the hardware: surveys it, proves it in quiet, and notices what comes and goes."""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from landreeve.wire.messages import Event

from landreeve_agent import lean
from landreeve_agent.hardware.inventory import Accelerator, Cpu, Inventory, Limits, Memory, Proof
from landreeve_agent.hardware.override import BadOverrideError
from landreeve_agent.hardware.prove import Candidate
from landreeve_agent.hardware.survey import Survey
from landreeve_agent.hardware.watch import Change, changes

logger = logging.getLogger(__name__)

# Light to ask; torch waits for the quiet in which devices are proven.
_ASKED_AT_START = ("onnxruntime", "openvino")
_SETTLE_S = 1.0
_UNKNOWN = Inventory(
    cpu=Cpu(model="unknown processor", architecture="", physical_cores=1, logical_cores=1, affinity=1),
    limits=Limits(),
    memory=Memory(total_bytes=0, available_bytes=0, usable_bytes=0),
    threads=1,
)
Tell = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Lost:
    """A device that went away while models ran on it."""

    device: Accelerator
    models: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For the status: what is gone, who ran on it, and what to do."""
        who = ", ".join(self.models)
        why = self.device.problem or "gone"
        return f"{self.device.name} cannot be used ({why}); {who} ran on it. {self._advice}"

    @property
    def _advice(self) -> str:
        fix = self.device.fix or "check its seat and power, then restart the box"
        return f"{fix[0].upper()}{fix[1:]}."


@dataclass
class HardwareRoom:
    """Keeps the inventory. ``used`` tells what each model runs on (``GPU · openvino · …``), ``tell`` reports events.

    ``stop`` of the survey must become true when `close` was called, so that no child keeps the process waiting.
    """

    survey: Survey
    watch_s: float
    prove_after_s: float
    used: Callable[[], Mapping[str, str]]
    tell: Tell
    _inventory: Inventory | None = None
    _seen: Inventory | None = None
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _lost: dict[str, Lost] = field(default_factory=dict)
    _problem: str = ""

    async def inventory(self) -> Inventory:
        """The latest inventory; waits for the first."""
        await self._ready.wait()
        if self._inventory is None:
            raise RuntimeError("the inventory was announced before it was there")
        return self._inventory

    async def document(self) -> dict[str, Any]:
        """The same as a document, with the box in a word and in a line."""
        return document_of(await self.inventory())

    @property
    def threads(self) -> int:
        """The budget for inference now, of files alone: some milliseconds, for the start of other rooms."""
        return self._look_now().threads

    @property
    def problems(self) -> tuple[str, ...]:
        """What the status must say of the hardware."""
        own = (self._problem,) if self._problem else ()
        return (*own, *(lost.sentence for lost in self._lost.values()))

    async def run(self) -> None:
        """Survey, wait for the quiet, prove, and watch for ever."""
        try:
            await self._examine()
        except Exception:
            if not self._ready.is_set():
                self._adopt(_UNKNOWN)  # the hub must hear of this site all the same
            raise
        quiet = asyncio.get_running_loop().time() + self.prove_after_s
        while asyncio.get_running_loop().time() < quiet:
            await asyncio.sleep(min(self.watch_s, quiet - asyncio.get_running_loop().time()))
            await self.look()
        await self._study(frozenset())
        while True:
            await asyncio.sleep(self.watch_s)
            await self.look()

    async def look(self) -> tuple[Change, ...]:
        """Compare the files with the last look; what is different is told, surveyed and proven."""
        found = await self._changes()
        if found:
            # A Coral leaves the bus for a moment while its firmware is loaded: only what stays so is told.
            await asyncio.sleep(_SETTLE_S)
            found = await self._changes()
        if not found:
            await self._recall()
            return ()
        self._seen = await self._glance()
        self._adopt(await asyncio.to_thread(self.survey.refresh, await self.inventory()))
        for change in found:
            self._note(change)
        told = await self.document()
        for change in found:
            await self.tell(self._event(change, told))
        devices = [(change.what, change.device) for change in found if change.device is not None]
        if devices:
            # What was proven before it went away is proven again: it may have come back broken.
            await self._study(frozenset(device.kind for what, device in devices if what != "vanished"))
        return found

    async def _recall(self) -> None:
        """Adopt what somebody else has proven, with ``landreeve hw prove``."""
        before = await self.inventory()
        fresh = await asyncio.to_thread(self.survey.recalled, before)
        # A proof is noted as interrupted while it is being made.
        if fresh.proofs != before.proofs and not any(proof.cause == "interrupted" for proof in fresh.proofs):
            self._adopt(fresh)
            await self._tell_proofs(before, fresh)

    async def _changes(self) -> tuple[Change, ...]:
        now = await self._glance()
        names = {a.id: a.name for a in self._inventory.accelerators} if self._inventory else {}
        return changes(self._seen, now, names) if self._seen is not None else ()

    async def _glance(self) -> Inventory:
        return await asyncio.to_thread(self._look_now)

    def _look_now(self) -> Inventory:
        """What the files say. A bad override must not keep the site from running: it is shown, and left out."""
        try:
            return self.survey.glance()
        except BadOverrideError as error:
            logger.warning("%s", error)
            self._problem = str(error)
            self.survey = dataclasses.replace(self.survey, override="")
            return self.survey.glance()

    async def _examine(self) -> None:
        self._seen = await self._glance()
        self._adopt(await asyncio.to_thread(self.survey.examine, _ASKED_AT_START))
        lean.give_back()

    async def _study(self, again: frozenset[str]) -> None:
        before = await self.inventory()

        def wanted(candidate: Candidate) -> bool:
            return candidate.device in again

        found = await asyncio.to_thread(self.survey.study, wanted)
        if self.survey.stop():
            return
        self._adopt(found)
        lean.give_back()
        await self._tell_proofs(before, found)

    def _adopt(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._ready.set()

    async def _tell_proofs(self, before: Inventory, after: Inventory) -> None:
        """Each refusal that is news, and once that what can be used has changed."""
        known = {_tried(proof) for proof in before.proofs}
        news = [proof for proof in after.proofs if _tried(proof) not in known]
        for proof in news:
            if not proof.ok:
                await self.tell(refusal(proof))
        if any(proof.ok for proof in news):
            await self.tell(proven(after))

    def _note(self, change: Change) -> None:
        device = change.device
        if device is None:
            return
        if change.what != "vanished" and device.usable:
            self._lost.pop(device.id, None)
            return
        others = self._inventory.accelerators if self._inventory else ()
        if any(a.usable and a.kind == device.kind for a in others):
            return  # a plan names a kind of device, so its models can go on
        users = tuple(name for name, used in self.used().items() if used.lower().startswith(device.kind))
        if users:
            self._lost[device.id] = Lost(device, users)

    def _event(self, change: Change, told: dict[str, Any]) -> Event:
        lost = self._lost.get(change.device.id) if change.device is not None else None
        severity: Literal["info", "warning", "error"] = "warning" if change.what == "vanished" else "info"
        return Event(
            name="hardware.changed",
            subject=change.device.id if change.device is not None else "box",
            cause=change.what,
            sentence=f"{change.sentence} {', '.join(lost.models)} ran on it." if lost else change.sentence,
            severity="error" if lost else severity,
            data={"hardware": told, "models": list(lost.models) if lost else []},
        )


def document_of(inventory: Inventory) -> dict[str, Any]:
    """An inventory for the hub, the local API and the command line."""
    return {**msgspec.to_builtins(inventory), "kind": inventory.kind, "text": inventory.text}


def refusal(proof: Proof) -> Event:
    """The event of a device that a runtime lists and cannot use."""
    target = proof.target.removesuffix("ExecutionProvider")
    return Event(
        name="hardware.refused", subject=f"{proof.runtime} {proof.target}", cause=proof.cause, severity="warning",
        sentence=f"{proof.runtime} cannot be used on {target}: {proof.sentence}.",
        data={"attempts": proof.attempts, "key": proof.key},
    )  # fmt: skip


def proven(inventory: Inventory) -> Event:
    """The event of a box whose proven devices have changed."""
    devices: dict[str, list[str]] = {}
    for proof in inventory.proofs:
        if proof.ok:
            devices.setdefault(proof.device.upper(), []).append(proof.runtime)
    told = "; ".join(f"{device} with {', '.join(sorted(set(names)))}" for device, names in sorted(devices.items()))
    return Event(
        name="hardware.proven", subject="box", cause="proven", sentence=f"Models can run here on: {told}.",
        data={"hardware": document_of(inventory)},
    )  # fmt: skip


def _tried(proof: Proof) -> tuple[str, str, str, bool, str]:
    return proof.runtime, proof.target, proof.key, proof.ok, proof.cause
