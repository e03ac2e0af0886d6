"""How a model runs on a box, in words both sides understand: told by the device that measured it, passed on by the
hub as a hint to boxes of the same class.

A hint can only cost time: a device believes none of its values (`fault_of`), gates and measures it like any other
plan, and finds the file of its graph by itself.
"""

import hashlib
import re

import msgspec

BACKENDS = frozenset({"onnxruntime", "openvino", "torch"})
DEVICES = frozenset({"cpu", "gpu", "npu"})
PRECISIONS = frozenset({"fp32", "bf16", "fp16", "int8", "int4"})
MOST_THREADS = 1024
MOST_STREAMS = 256
MOST_ROWS = 65536
MOST_HINTS = 3
MOST_TRIALS = 48
MOST_TRIALS_BYTES = 8 * 1024
_RECIPE = re.compile(r"[a-z0-9][a-z0-9._+:=-]{0,255}")  # a recipe may name every node it leaves alone
_NAME = 320
_WORDS = 200


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan without the files of one box. ``batch`` is the most rows joined into a run, ``recipe`` how its graph was
    made ("" = the release's own)."""

    backend: str
    device: str
    precision: str
    threads: int = 1
    streams: int = 1
    batch: int = 1
    recipe: str = ""

    @property
    def name(self) -> str:
        """The plan in words, as trials name it.

        >>> RunPlan(backend="openvino", device="cpu", precision="int8", threads=2, recipe="nncf").name
        'openvino cpu int8 nncf 2 threads'
        """
        made = f" {self.recipe}" if self.recipe else ""
        threads = f"{self.threads} thread" + ("" if self.threads == 1 else "s")
        streams = f" {self.streams} streams" if self.streams > 1 else ""
        return f"{self.backend} {self.device} {self.precision}{made} {threads}{streams}"


class PlanTrial(msgspec.Struct, frozen=True, kw_only=True):
    """One plan that was tried: times of one row, ``ratio`` to the default plan's, ``metric`` on the golden set, how far
    it came (``stage``), and why it was kept or fell."""

    what: str
    accepted: bool
    why: str = ""
    p50_us: float | None = None
    cpu_us: float | None = None
    metric: float | None = None
    ratio: float | None = None
    stage: str = ""


class BoxFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What boxes of one class share, readable: ``runtimes`` and ``drivers`` map names to versions, ``caps`` what people
    set to hold the runtimes back."""

    cpu: str = ""
    isa: tuple[str, ...] = ()
    threads: int = 0
    runtimes: dict[str, str] = {}
    drivers: dict[str, str] = {}
    caps: dict[str, str] = {}


def fault_of(plan: RunPlan) -> str:
    """Why nobody could mean this plan; empty when it may be tried.

    >>> fault_of(RunPlan(backend="onnxruntime", device="cpu", precision="fp32"))
    ''
    >>> fault_of(RunPlan(backend="shell", device="cpu", precision="fp32"))
    "backend 'shell' is unknown"
    """
    for name, value, known in (
        ("backend", plan.backend, BACKENDS),
        ("device", plan.device, DEVICES),
        ("precision", plan.precision, PRECISIONS),
    ):
        if value not in known:
            return f"{name} {value[:40]!r} is unknown"
    for name, count, most in (
        ("threads", plan.threads, MOST_THREADS),
        ("streams", plan.streams, MOST_STREAMS),
        ("batch", plan.batch, MOST_ROWS),
    ):
        if not 1 <= count <= most:
            return f"{name} {count} is not from 1 to {most}"
    if plan.recipe and not _RECIPE.fullmatch(plan.recipe):
        return f"recipe {plan.recipe[:40]!r} is no name"
    return ""


def class_of(box: BoxFacts) -> str:
    """A name that equal boxes share; empty when nothing is known of the box."""
    if box == BoxFacts():
        return ""
    return hashlib.sha256(msgspec.json.encode(box, order="sorted")).hexdigest()[:16]


def bounded(trials: tuple[PlanTrial, ...]) -> tuple[tuple[PlanTrial, ...], int]:
    """The trials that fit into a report, words cut short, and how many were left out.

    At most `MOST_TRIALS` and `MOST_TRIALS_BYTES` of JSON; accepted ones go first, so that what nearly won stays.
    """
    order = sorted(range(len(trials)), key=lambda i: (not trials[i].accepted, i))
    kept, room = set[int](), MOST_TRIALS_BYTES
    for i in order[:MOST_TRIALS]:
        room -= len(msgspec.json.encode(_cut(trials[i])))
        if room < 0:
            break
        kept.add(i)
    return tuple(_cut(trials[i]) for i in sorted(kept)), len(trials) - len(kept)


def _cut(trial: PlanTrial) -> PlanTrial:
    return msgspec.structs.replace(trial, what=trial.what[:_NAME], why=trial.why[:_WORDS])
