"""Surveying a box: its files, what its runtimes list, what is proven of it. For the agent and the command line.

Runtimes are asked only when something they depend on has changed since they were last; torch takes 220 MB to ask.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from landreeve_agent.hardware.child import Stop, never
from landreeve_agent.hardware.inventory import Accelerator, Inventory, Proof, Runtime
from landreeve_agent.hardware.nvml import ask_nvml
from landreeve_agent.hardware.override import overridden, read_override
from landreeve_agent.hardware.probe import read_box, read_devices
from landreeve_agent.hardware.prove import DEADLINE_S, Candidate, Command, Wanted, devices_key, prove, recall
from landreeve_agent.hardware.remembered import Remembered
from landreeve_agent.hardware.runtimes import NAMES, AskNamed, ask_runtimes, installed


def _nothing(_: Candidate) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Survey:
    """One box under ``root``, with what is remembered of it in ``memory``. Everything here blocks: call it in a
    thread. ``override`` names a file that has the last word (see `override`); a bad one raises `BadOverrideError`."""

    memory: Path
    root: Path = Path("/")
    override: str = ""
    stop: Stop = never
    ask: AskNamed = ask_runtimes
    command: Command | None = None
    deadline_s: float = DEADLINE_S

    def glance(self) -> Inventory:
        """What the files alone say now: some milliseconds."""
        return self._told(read_box(self.root))

    def examine(self, names: Sequence[str] = NAMES) -> Inventory:
        """The inventory with the proofs that hold. Runtimes outside ``names`` are told as far as they are remembered,
        else with their version alone."""
        found = read_devices(self.root, lambda: ask_nvml(stop=self.stop))
        if not (self.override and "runtimes" in read_override(self.override)):
            found = msgspec.structs.replace(found, runtimes=self._runtimes(found, names))
        found = msgspec.structs.replace(found, proofs=recall(found, self.memory))
        return self._told(found)

    def refresh(self, known: Inventory) -> Inventory:
        """An inventory brought up to date from the files alone: no child is started. Names and what NVML told stay."""
        now, before = self.glance(), {a.id: a for a in known.accelerators}
        accelerators = tuple(_keeping(a, before.get(a.id)) for a in now.accelerators)
        now = msgspec.structs.replace(now, accelerators=accelerators, runtimes=now.runtimes or known.runtimes)
        return now if self.override else msgspec.structs.replace(now, proofs=recall(now, self.memory))

    def remembered(self) -> Inventory:
        """What the files say now with everything that is remembered; no child is started."""
        found = self.glance()
        if self.override:
            return found
        memory = Remembered.load(self.memory)
        listed = (memory.runtime(name, _listing_key(name, found)) for name in NAMES)
        runtimes = tuple(runtime for runtime in listed if runtime is not None)
        return self.recalled(msgspec.structs.replace(found, runtimes=runtimes))

    def recalled(self, known: Inventory) -> Inventory:
        """An inventory with the proofs that are remembered now; the command line may have made new ones."""
        return known if self.override else msgspec.structs.replace(known, proofs=recall(known, self.memory))

    def study(self, again: Wanted = _nothing) -> Inventory:
        """The inventory with every device proven or refused, as far as it is not already (see `prove`)."""
        found = self.examine()
        if self.override:
            return found
        return msgspec.structs.replace(found, proofs=self._prove(found, again))

    def _prove(self, found: Inventory, again: Wanted) -> tuple[Proof, ...]:
        return prove(found, self.memory, again=again, command=self.command, deadline_s=self.deadline_s, stop=self.stop)

    def _told(self, found: Inventory) -> Inventory:
        return overridden(found, read_override(self.override), self.override) if self.override else found

    def _runtimes(self, found: Inventory, names: Sequence[str]) -> tuple[Runtime, ...]:
        memory = Remembered.load(self.memory)
        keys = {name: _listing_key(name, found) for name in NAMES}
        known = {name: runtime for name in NAMES if (runtime := memory.runtime(name, keys[name])) is not None}
        asked = {r.name: r for r in self.ask([n for n in names if n not in known], stop=self.stop)}
        if asked and not self.stop():
            memory.keep_listed([(keys[name], runtime) for name, runtime in asked.items()])
        told = known | asked
        return tuple(told.get(name) or _unasked(name) for name in NAMES)


def _unasked(name: str) -> Runtime:
    version = installed(name)
    return Runtime(name=name, version=version, problem="" if version else "not installed")


def _keeping(device: Accelerator, before: Accelerator | None) -> Accelerator:
    if before is None:
        return device
    told = {name: getattr(device, name) or getattr(before, name) for name in ("memory_bytes", "firmware", "library")}
    return msgspec.structs.replace(device, name=before.name, facts={**before.facts, **device.facts}, **told)


def _listing_key(name: str, found: Inventory) -> str:
    """A hash of everything a runtime's list of devices depends on."""
    parts = [name, installed(name), found.kernel, found.cpu.architecture, *devices_key(found)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
