"""Samples and labels from applications into the store: all of a request, or nothing of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from landreeve_models.definition import Definition
from sqlite_utils import Database as Tables

from landreeve_agent.intake.capture import REPEATS, add_to_meta
from landreeve_agent.intake.event_time import event_time
from landreeve_agent.intake.rows import Fault, Label, Sample, check_labels, check_samples, known_fields
from landreeve_agent.store.database import Database
from landreeve_agent.store.stamps import stamp

_SAMPLE = (
    "INSERT INTO samples (model, id, at, version, release, row, captured) VALUES (?, ?, ?, '', '', ?, ?) "
    "ON CONFLICT (model, id) DO NOTHING"
)
_LABEL = "INSERT INTO labels (model, id, label, at, received) VALUES (?, ?, ?, ?, ?) ON CONFLICT (model, id) DO NOTHING"


@dataclass(frozen=True)
class Accepted:
    """How many were new and how many were known already (the first stays)."""

    accepted: int
    repeated: int


@dataclass(frozen=True)
class Refused:
    """Nothing was stored: what is wrong with the request."""

    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class UnknownModel:
    """Nothing was stored: no definition of that name; those there are."""

    known: tuple[str, ...]


@dataclass(frozen=True)
class Intake:
    """Takes samples and labels. The answer is given after the commit: what was accepted survives any kill."""

    database: Database
    definitions: Mapping[str, Definition]

    async def samples(self, model: str, samples: Sequence[Sample], now: datetime) -> Accepted | Refused | UnknownModel:
        """Store samples of a model."""
        definition = self.definitions.get(model)
        if definition is None:
            return UnknownModel(tuple(self.definitions))
        faults = check_samples(definition, samples, now)
        if faults:
            return Refused(faults)
        rows = [
            (model, s.id, event_time(s.at), msgspec.json.encode(known_fields(s.row, definition)).decode(), stamp(now))
            for s in samples
        ]
        return await self.database.write(lambda tables: _insert(tables, _SAMPLE, rows))

    async def labels(self, model: str, labels: Sequence[Label], now: datetime) -> Accepted | Refused | UnknownModel:
        """Store labels of a model; a label may come before its sample is in the store."""
        if model not in self.definitions:
            return UnknownModel(tuple(self.definitions))
        faults = check_labels(labels, now)
        if faults:
            return Refused(faults)
        rows = [(model, label.id, label.label, event_time(label.at), stamp(now)) for label in labels]
        return await self.database.write(lambda tables: _insert(tables, _LABEL, rows))


def _insert(tables: Tables, sql: str, rows: Sequence[tuple[Any, ...]]) -> Accepted:
    accepted = tables.conn.executemany(sql, rows).rowcount if rows else 0
    add_to_meta(tables, REPEATS, len(rows) - accepted)
    return Accepted(accepted, len(rows) - accepted)
