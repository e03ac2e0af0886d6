"""Exact totals, derived from what the store holds: they neither lose nor double across a kill."""

from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as Tables

from landreeve_agent.intake.capture import BAD_LINES, REPEATS


@dataclass(frozen=True)
class ModelTotals:
    """Of one model: answered rows ever and today (UTC day), failed runs, samples and labels now kept."""

    predictions: int = 0
    errors: int = 0
    today: int = 0
    samples: int = 0
    labels: int = 0


@dataclass(frozen=True)
class Totals:
    """Of the whole box."""

    models: dict[str, ModelTotals]
    repeats: int
    bad_lines: int

    @property
    def predictions(self) -> int:
        return sum(model.predictions for model in self.models.values())

    @property
    def errors(self) -> int:
        return sum(model.errors for model in self.models.values())

    @property
    def today(self) -> int:
        return sum(model.today for model in self.models.values())

    @property
    def samples(self) -> int:
        return sum(model.samples for model in self.models.values())

    @property
    def labels(self) -> int:
        return sum(model.labels for model in self.models.values())


def read_totals(tables: Tables, now: datetime) -> Totals:
    """The totals at this moment."""
    today = now.strftime("%Y-%m-%d")
    answered = {
        str(model): (int(predictions), int(errors), int(of_today))
        for model, predictions, errors, of_today in tables.conn.execute(
            "SELECT model, sum(predictions), sum(errors), sum(CASE WHEN day = ? THEN predictions ELSE 0 END) "
            "FROM counters GROUP BY model",
            (today,),
        )
    }
    kept = {str(model): counts for model, *counts in tables.conn.execute("SELECT model, samples, labels FROM kept")}
    models = {name: ModelTotals(*answered.get(name, (0, 0, 0)), *kept.get(name, (0, 0))) for name in {*answered, *kept}}
    return Totals(models, _meta(tables, REPEATS), _meta(tables, BAD_LINES))


def _meta(tables: Tables, key: str) -> int:
    row = tables.conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return int(row[0]) if row else 0
