"""Proving devices: each runtime runs a tiny model on each of its devices, in a child with a deadline.

Listing a device proves nothing: drivers hang, crash, answer wrongly, and both big runtimes fall back to the CPU with
no error. What came of it is one of these words: empty (it ran there, and right), ``hung``, ``crashed``, ``failed``
(the runtime said why), ``wrong_result``, ``silent_fallback``, ``unreadable``, ``interrupted`` (the box went down
meanwhile). Source for the fallbacks: onnxruntime issues 17801 and 23647.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from landreeve_agent.hardware.child import Ended, Stop, never, run_child
from landreeve_agent.hardware.inventory import Inventory, Proof
from landreeve_agent.hardware.remembered import Remembered
from landreeve_agent.hardware.runtimes import device_of

logger = logging.getLogger(__name__)

DEADLINE_S = 60.0
MAX_ATTEMPTS = 3
_TOLERANCE = {"cpu": 1e-3, "gpu": 2e-2, "npu": 5e-2}  # fp32; tensor cores and halves; halves and eighths
_MODEL = "tiny 1"  # a new model proves anew


@dataclass(frozen=True, slots=True)
class Candidate:
    """A device in a runtime's own words, and which kind it is."""

    runtime: str
    device: str
    target: str

    @property
    def name(self) -> str:
        """For people.

        >>> Candidate("openvino", "gpu", "GPU.0").name
        'openvino on GPU.0'
        """
        return f"{self.runtime} on {self.target.removesuffix('ExecutionProvider')}"


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What the child prints: the devices that took part in the runtime's words, the largest deviation as a share of
    the largest value, the median of a run in µs; or the runtime's error."""

    where: tuple[str, ...] = ()
    difference: float = 0.0
    latency_us: float | None = None
    error: str = ""


Command = Callable[[Candidate], list[str]]
Wanted = Callable[[Candidate], bool]


def candidates(inventory: Inventory) -> tuple[Candidate, ...]:
    """Every device that a runtime of the inventory lists; pure."""
    return tuple(
        Candidate(runtime.name, device, target)
        for runtime in inventory.runtimes
        for target in runtime.providers
        if (device := device_of(runtime.name, target))
    )


def key_of(candidate: Candidate, inventory: Inventory) -> str:
    """A hash of everything the proof depends on; pure.

    The kernel counts for devices, because most drivers come with it; for the processor its instructions do.
    """
    version = next((r.version for r in inventory.runtimes if r.name == candidate.runtime), "")
    parts = [_MODEL, candidate.runtime, version, candidate.target, inventory.cpu.architecture]
    if candidate.device == "cpu":
        parts += [inventory.cpu.model, *inventory.cpu.isa]
    else:
        parts += [inventory.kernel, *devices_key(inventory, candidate.device)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def devices_key(inventory: Inventory, kind: str = "") -> Iterator[str]:
    """What identifies the accelerators (of a kind) with their drivers, firmware and libraries."""
    for a in inventory.accelerators:
        if a.kind == (kind or a.kind):
            state = (a.id, a.name, a.driver, a.driver_version, a.firmware, a.library, a.node, a.problem)
            yield "|".join(state)


def prove(
    inventory: Inventory,
    memory_path: Path,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    again: Wanted = lambda _: False,
    only: Wanted = lambda _: True,
    command: Command | None = None,
    deadline_s: float = DEADLINE_S,
    stop: Stop = never,
) -> tuple[Proof, ...]:
    """A proof for every candidate of the inventory, remembered in the file ``memory_path`` or made now.

    What is remembered holds, except where ``again`` says so; what failed is tried three times in all, with twice the
    time each. ``only`` leaves candidates out; ``stop`` ends it early, as if what was not tried were no candidate.
    Blocks for a second or so for each that is new: call it in a thread.
    """
    memory = Remembered.load(memory_path)
    attempt = _Attempt(memory, now, command or _command, deadline_s, stop)
    settled = (
        attempt.settle(candidate, key_of(candidate, inventory), again(candidate))
        for candidate in candidates(inventory)
        if only(candidate) and not stop()
    )
    return tuple(proof for proof in settled if proof is not None)


def recall(inventory: Inventory, memory_path: Path) -> tuple[Proof, ...]:
    """The proofs that hold now, without running anything."""
    memory = Remembered.load(memory_path)
    found = (memory.proof(c.runtime, c.target, key_of(c, inventory)) for c in candidates(inventory))
    return tuple(proof for proof in found if proof is not None)


@dataclass(frozen=True, slots=True)
class _Attempt:
    memory: Remembered
    now: Callable[[], datetime]
    command: Command
    deadline_s: float
    stop: Stop

    def settle(self, candidate: Candidate, key: str, again: bool) -> Proof | None:
        known = self.memory.proof(candidate.runtime, candidate.target, key)
        if known is not None and not again and (known.ok or known.attempts >= MAX_ATTEMPTS):
            return known
        attempts = known.attempts + 1 if known is not None and not again else 1
        proof = Proof(
            runtime=candidate.runtime, device=candidate.device, target=candidate.target, ok=False,
            cause="interrupted", sentence="the box or the agent ended while it was tried", key=key,
            at=self.now().isoformat(timespec="seconds"), attempts=attempts,
        )  # fmt: skip
        # Written before the try: a driver that takes the box down with it must not do so at every start.
        self.memory.keep(proof)
        ended = run_child(self.command(candidate), self.deadline_s * 2 ** (attempts - 1), self.stop)
        if ended.cause == "stopped":
            self.memory.keep(known) if known is not None else self.memory.forget(proof)
            return None
        proof = _proof_of(proof, candidate, ended)
        self.memory.keep(proof)
        logger.info("%s: %s", candidate.name, proof.sentence or "proven")
        return proof


def _proof_of(begun: Proof, candidate: Candidate, ended: Ended) -> Proof:
    if ended.cause:
        return msgspec.structs.replace(begun, cause=ended.cause, sentence=ended.sentence)
    try:
        ran = msgspec.json.decode(ended.output, type=Ran)
    except msgspec.DecodeError as error:
        return msgspec.structs.replace(begun, cause="unreadable", sentence=f"its answer cannot be read: {error}")
    cause, sentence = judge(candidate, ran)
    return msgspec.structs.replace(
        begun, ok=not cause, cause=cause, sentence=sentence, latency_us=None if cause else ran.latency_us
    )


def judge(candidate: Candidate, ran: Ran) -> tuple[str, str]:
    """Cause word and sentence for what the child told, both empty when the device is proven; pure."""
    if ran.error:
        return "failed", ran.error
    if not ran.where:
        return "silent_fallback", "the runtime does not say where it ran"
    elsewhere = [device for device in ran.where if not _is(device, candidate.target)]
    if elsewhere:
        return "silent_fallback", f"it ran on {', '.join(elsewhere)} instead"
    if not ran.difference <= _TOLERANCE[candidate.device]:
        off = "by far" if ran.difference >= 1e6 else f"by {ran.difference:.1%} of the largest value"
        return "wrong_result", f"it answers wrongly, {off}"
    return "", ""


def _is(device: str, target: str) -> bool:
    """Whether a device is the one meant: the first of a kind may be named without its number."""
    return device == target or device.startswith(f"{target}.")


def _command(candidate: Candidate) -> list[str]:
    own = "landreeve_agent.hardware.prove_child"
    return [sys.executable, "-m", own, candidate.runtime, candidate.target, str(os.getpid())]
