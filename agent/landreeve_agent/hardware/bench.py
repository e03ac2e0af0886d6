"""Short figures of a box: memory bandwidth, and for each proven runtime and device the tiny model's latency and the
speed of matrix products. Each is measured in a child, one after another, so that they do not disturb each other.

They say what a box is like, not how fast a model will be: that is what the tuner measures on the model itself.
"""

import os
import sys
from collections.abc import Callable, Iterator

import msgspec

from landreeve_agent.hardware.child import run_child
from landreeve_agent.hardware.inventory import Inventory

DEADLINE_S = 90.0


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a child prints; of the best round, except ``latency_us``, the median of a run of the tiny model."""

    latency_us: float | None = None
    gflops: float | None = None
    gbytes_s: float | None = None
    error: str = ""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what was measured where, and with how many threads; ``problem`` when it could not be."""

    what: str
    device: str
    target: str
    threads: int
    latency_us: float | None = None
    gflops: float | None = None
    gbytes_s: float | None = None
    problem: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to measure."""

    what: str
    device: str
    target: str
    threads: int


Command = Callable[[Job], list[str]]


def jobs(inventory: Inventory) -> Iterator[Job]:
    """Memory and every proven device; the processor with one thread, and with all it may use. Pure."""
    counts = tuple(sorted({1, inventory.threads}))
    for threads in counts:
        yield Job(what="memory", device="cpu", target="copy", threads=threads)
    for proof in inventory.proofs:
        if proof.ok:
            for threads in counts if proof.device == "cpu" else (1,):
                yield Job(what=proof.runtime, device=proof.device, target=proof.target, threads=threads)


def measure(job: Job, command: Command | None = None, deadline_s: float = DEADLINE_S) -> Measured:
    """One figure; blocks for some seconds. Whatever happens to the child becomes ``problem``."""
    ended = run_child((command or _command)(job), deadline_s)
    plain = msgspec.to_builtins(job)
    if ended.cause:
        return Measured(**plain, problem=ended.sentence)
    try:
        figures = msgspec.json.decode(ended.output, type=Figures)
    except msgspec.DecodeError as error:
        return Measured(**plain, problem=f"its figures cannot be read: {error}")
    return Measured(
        **plain, latency_us=figures.latency_us, gflops=figures.gflops, gbytes_s=figures.gbytes_s, problem=figures.error
    )


def _command(job: Job) -> list[str]:
    own = "landreeve_agent.hardware.bench_child"
    return [sys.executable, "-m", own, job.what, job.target, str(job.threads), str(os.getpid())]
