"""Which environment the agent starts from: one small file, replaced atomically, and what follows from it.

The launcher is the oldest code on a box and starts the newest, so this file knows the standard library only, and reads
what a later version wrote: unknown members are kept, a damaged file means the environment the box came with.
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SLOTS_FILE = "slots.json"
MAX_STARTS = 3
RESTART_CODE = 75  # EX_TEMPFAIL: "start me again", from sysexits(3)
LAUNCHED = "LANDREEVE_LAUNCHED"
RUNNING = "LANDREEVE_RELEASE"
BASE = "LANDREEVE_BASE_PYTHON"


@dataclass(frozen=True)
class Slot:
    """An environment: the release it was made of, and its interpreter. The box's own has no release."""

    release: str = ""
    python: str = ""


@dataclass(frozen=True)
class Verdict:
    """Why a release was left, for the agent to report."""

    release: str
    cause: str
    sentence: str


@dataclass(frozen=True)
class Slots:
    """``good`` starts unless ``trying`` is set, whose starts are counted before each of them. ``deadline_s`` is how
    long a new one may take to confirm itself, which it does by clearing ``trying`` and becoming ``good``."""

    good: Slot = Slot()
    trying: Slot | None = None
    starts: int = 0
    deadline_s: float = 900.0
    failed: Verdict | None = None
    other: dict[str, Any] = field(default_factory=dict)


def offered(slots: Slots, slot: Slot, deadline_s: float) -> Slots:
    """The same with a new environment to try at the next start."""
    return replace(slots, trying=slot, starts=0, deadline_s=deadline_s, failed=None)


def confirmed(slots: Slots, release: str) -> Slots:
    """The same once the environment of that release has proven itself; anything else changes nothing."""
    if slots.trying is None or slots.trying.release != release:
        return slots
    return replace(slots, good=slots.trying, trying=None, starts=0, failed=None)


def left(slots: Slots, cause: str, sentence: str) -> Slots:
    """The same without the environment that was tried, and why."""
    if slots.trying is None:
        return slots
    return replace(slots, trying=None, starts=0, failed=Verdict(slots.trying.release, cause, sentence))


def to_start(slots: Slots) -> tuple[Slots, Slot]:
    """What to keep and which environment to start now.

    >>> tried = offered(Slots(), Slot("b" * 64, "/b/python"), 60)
    >>> for _ in range(3): tried, slot = to_start(tried)
    >>> (slot.python, to_start(tried)[1].python, to_start(tried)[0].failed.cause)
    ('/b/python', '', 'boot_loop')
    """
    if slots.trying is None:
        return slots, slots.good
    if slots.starts >= MAX_STARTS:
        ended = left(slots, "boot_loop", f"The new agent ended {slots.starts} times before it had proven itself.")
        return ended, ended.good
    return replace(slots, starts=slots.starts + 1), slots.trying


def read(path: Path) -> Slots:
    """What the file says; nothing to try when it is missing or damaged."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Slots)} - {"other"}
        return Slots(
            good=_slot(raw.get("good")) or Slot(),
            trying=_slot(raw.get("trying")),
            starts=int(raw.get("starts", 0)),
            deadline_s=float(raw.get("deadline_s", Slots.deadline_s)),
            failed=_verdict(raw.get("failed")),
            other={name: value for name, value in raw.items() if name not in known},
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return Slots()


def write(path: Path, slots: Slots) -> None:
    """Keep it: whole or not at all, also across a power cut."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    doc = {name: value for name, value in asdict(slots).items() if name != "other"}
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({**slots.other, **doc}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _slot(raw: Any) -> Slot | None:
    return Slot(str(raw.get("release", "")), str(raw.get("python", ""))) if isinstance(raw, dict) else None


def _verdict(raw: Any) -> Verdict | None:
    if not isinstance(raw, dict):
        return None
    return Verdict(str(raw.get("release", "")), str(raw.get("cause", "")), str(raw.get("sentence", "")))
