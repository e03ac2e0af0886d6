"""A training job as values: what was asked, where it stands, what came of it; and how rows are split by time."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
from landreeve_models.definition import Definition

HOLDOUT_SHARE = 0.2
VALIDATION_SHARE = 0.1
MIN_ROWS = 200


class TrainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Train ``model`` on labelled rows with first <= at < last (RFC 3339 UTC). The same ``request_id`` twice is one
    run."""

    model: str
    first: str
    last: str
    reason: str = ""
    request_id: str = ""


class RunState(StrEnum):
    """Where a run stands. Only ``queued`` and ``training`` are open: they go on after a restart."""

    QUEUED = "queued"
    TRAINING = "training"
    FINISHED = "finished"
    REJECTED = "rejected"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        """Whether work remains."""
        return self in (RunState.QUEUED, RunState.TRAINING)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """``job.json``: everything the trainer needs besides the rows. ``champion`` is the folder of the release in use,
    or empty; ``created`` becomes the candidate's date, so a resumed job gives the same candidate."""

    run: str
    site: str
    request: TrainRequest
    definition: Definition
    champion: str = ""
    champion_release: str = ""
    code: str
    created: str
    threads: int = 1


class LabelledRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``rows.jsonl``, in order of ``at``."""

    at: str
    row: dict[str, Any]
    label: float


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """How far the trainer is, 0 to 1, and what it does."""

    share: float
    sentence: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome"):
    """What came of a job. ``passed``: a candidate lies in the folder ``candidate`` and beats what is in use;
    otherwise ``cause`` and ``sentence`` say why there is none."""

    passed: bool
    cause: str
    sentence: str
    metrics: dict[str, Any] = {}
    manifest: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers: fitting, validation (when to stop), holdout (the gate), and the golden half of the holdout."""

    fit: range
    validation: range
    holdout: range

    @property
    def training(self) -> range:
        """Every row a recipe may look at."""
        return range(self.fit.start, self.validation.stop)

    def golden(self, most: int = 2048) -> range:
        """Every second row of the holdout, thinner when that were more than ``most``."""
        step = max(2, -(-len(self.holdout) // most))
        return self.holdout[::step]


def split(rows: int) -> Split:
    """Split time-ordered rows: the latest fifth is held out, and of the rest the latest tenth validates.

    >>> split(1000)
    Split(fit=range(0, 720), validation=range(720, 800), holdout=range(800, 1000))
    """
    cut = rows - round(rows * HOLDOUT_SHARE)
    inner = cut - round(cut * VALIDATION_SHARE)
    return Split(range(inner), range(inner, cut), range(cut, rows))


def dataset_digest(lines: Sequence[bytes]) -> str:
    """The sha256 over the canonical lines of a data set, each ended by a newline."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
        digest.update(b"\n")
    return digest.hexdigest()


def canonical(row: LabelledRow) -> bytes:
    """A row's one line: members sorted, so the same row always has the same bytes."""
    return msgspec.json.encode(row, order="sorted")
