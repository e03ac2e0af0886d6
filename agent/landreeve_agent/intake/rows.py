"""Samples and labels as applications send them, checked against the model's definition."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from landreeve_models.definition import Definition, check_label, check_row

from landreeve_agent.intake.event_time import BadTimeError, event_time
from landreeve_agent.store.stamps import stamp

MAX_ID_CHARS = 128
# A box's clock may be a little behind the application's.
_AHEAD = timedelta(days=1)
_SHOWN = 20


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One row as the model will see it; ``at`` is when it happens in the world."""

    id: str
    at: str
    row: dict[str, Any]


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about the row of that id, and when it became known in the world."""

    id: str
    label: float
    at: str


class SampleBatch(msgspec.Struct, frozen=True, kw_only=True):
    samples: tuple[Sample, ...]


class LabelBatch(msgspec.Struct, frozen=True, kw_only=True):
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Fault:
    """One thing wrong: where in the request, which field, and why."""

    index: int
    field: str
    reason: str

    def __str__(self) -> str:
        return f"[{self.index}].{self.field}: {self.reason}"


def check_samples(definition: Definition, samples: Iterable[Sample], now: datetime) -> tuple[Fault, ...]:
    """Everything wrong with the samples (the first 20 of it); empty when all are good."""
    faults: list[Fault] = []
    latest = stamp(now + _AHEAD)
    for index, sample in enumerate(samples):
        faults += _check_head(index, sample.id, sample.at, latest)
        faults += [Fault(index, f"row.{p.field}", p.reason) for p in check_row(definition, sample.row)]
        if len(faults) >= _SHOWN:
            break
    return tuple(faults[:_SHOWN])


def check_labels(labels: Iterable[Label], now: datetime) -> tuple[Fault, ...]:
    """Everything wrong with the labels (the first 20 of it); empty when all are good."""
    faults: list[Fault] = []
    latest = stamp(now + _AHEAD)
    for index, label in enumerate(labels):
        faults += _check_head(index, label.id, label.at, latest)
        reason = check_label(label.label)
        if reason:
            faults.append(Fault(index, "label", reason))
        if len(faults) >= _SHOWN:
            break
    return tuple(faults[:_SHOWN])


def _check_head(index: int, name: str, at: str, latest: str) -> list[Fault]:
    faults = []
    if not 0 < len(name) <= MAX_ID_CHARS:
        faults.append(Fault(index, "id", f"must have 1 to {MAX_ID_CHARS} characters, got {len(name)}"))
    try:
        if event_time(at) > latest:
            faults.append(Fault(index, "at", f"{at} is more than a day ahead of this box's clock: {latest} is latest"))
    except BadTimeError as error:
        faults.append(Fault(index, "at", str(error)))
    return faults


def known_fields(row: Mapping[str, Any], definition: Definition) -> dict[str, Any]:
    """The row in the definition's own order of columns."""
    return {column.name: row[column.name] for column in definition.columns if column.name in row}
