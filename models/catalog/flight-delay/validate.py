"""Replays the year through the product's own windows, verdicts, retrain rule and gate, without any server.

    python models/catalog/flight-delay/validate.py [EVERY [DEFINITION]]

Prints, for the first model left alone, when each site's verdicts come; then the loop: which trainings are asked for,
what the gate says, and log loss a month of both. EVERY uses each n-th departure (a shortened year). The evidence in
README.md comes from here.
"""

import sys
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "docs" / "examples"))

import replay  # noqa: E402 - the site's application: the same rows as in the demo
from landreeve.release.layout import Packed, write_folder  # noqa: E402
from landreeve_agent.drift.monitor import Judgement, Measured, judge, score  # noqa: E402
from landreeve_agent.drift.quality import measure  # noqa: E402
from landreeve_agent.training.fitting import gather, train  # noqa: E402
from landreeve_agent.training.job import Job, LabelledRow, Outcome, TrainRequest  # noqa: E402
from landreeve_models import evaluate  # noqa: E402
from landreeve_models.baseline import Baseline  # noqa: E402
from landreeve_models.definition import load_definition  # noqa: E402
from landreeve_models.features.pipeline import Pipeline  # noqa: E402
from landreeve_models.inference import predict_graph  # noqa: E402

DEFINITION = load_definition(Path(sys.argv[2]) if len(sys.argv) > 2 else HERE)
SITES = ("EWR", "JFK", "LGA")
WINDOW_S = DEFINITION.window_days * 86_400
FIRST_END = datetime(2013, 3, 1, tzinfo=UTC)


@dataclass
class Site:
    name: str
    at: np.ndarray[Any, Any]
    rows: list[dict[str, Any]]
    label: np.ndarray[Any, Any]


@dataclass
class Model:
    """A release in use, and its windows so far by site."""

    packed: Packed
    folder: Path
    since: datetime
    history: dict[str, list[Measured]] = field(default_factory=dict)

    def predict(self, rows: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
        x = Pipeline.from_bytes(self.packed.file("features.json")).encode(rows)
        return predict_graph(self.packed.file("model.onnx"), x).astype(np.float64)


def main() -> None:
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    sites = {name: read(name, every) for name in SITES}
    with tempfile.TemporaryDirectory() as work:
        start = datetime(2013, 1, 1, tzinfo=UTC)
        outcome, first = fit(sites["EWR"], start, FIRST_END, champion=None, work=Path(work), reason="first model")
        print(f"first model at EWR: {outcome.sentence}")
        if first is None:
            raise SystemExit("no first model: too few rows; use a smaller EVERY")
        print("\n== left alone: windows with a verdict other than 'stable' or 'drifted'")
        alone = walk(sites, first, None)
        print("\n== the loop")
        loop = walk(sites, first, Path(work))
    table(sites, alone, loop)


def read(name: str, every: int) -> Site:
    departures = list(replay.read_departures(name, HERE / "data" / f"{name}.csv.gz", every))
    return Site(
        name,
        np.array([d.at.timestamp() for d in departures]),
        [d.row for d in departures],
        np.array([d.label for d in departures], dtype=np.float64),
    )


def fit(
    site: Site, first: datetime, last: datetime, *, champion: Model | None, work: Path, reason: str
) -> tuple[Outcome, Model | None]:
    chosen = np.flatnonzero((site.at >= first.timestamp()) & (site.at < last.timestamp()))
    lines = [LabelledRow(at=iso(site.at[i]), row=site.rows[i], label=float(site.label[i])) for i in chosen]
    span = TrainRequest(model=DEFINITION.name, first=first.isoformat(), last=last.isoformat(), reason=reason)
    job = Job(
        run=f"{site.name}-{last:%m%d}",
        site=site.name,
        request=span,
        definition=DEFINITION,
        champion=str(champion.folder) if champion else "",
        code="validate",
        created=last.isoformat(),
    )
    folder = work / job.run
    folder.mkdir()
    outcome, packed = train(job, gather(lines), folder, lambda share, words: None)
    if packed is None:
        return outcome, None
    write_folder(packed, folder / "candidate")
    return outcome, Model(packed, folder / "candidate", last)


def walk(sites: dict[str, Site], first: Model, work: Path | None) -> dict[str, np.ndarray[Any, Any]]:
    """Window by window; the predictions that were served. With ``work`` the loop retrains, without it never."""
    model = Model(first.packed, first.folder, first.since)
    served = {name: np.full(len(site.at), np.nan) for name, site in sites.items()}
    trained = FIRST_END
    begin = datetime.fromtimestamp(FIRST_END.timestamp() // WINDOW_S * WINDOW_S, UTC)
    while begin.year == 2013:
        end = begin + timedelta(seconds=WINDOW_S)
        lost = []
        for name, site in sites.items():
            judgement = one_window(site, model, begin, end, served[name])
            if judgement.verdict == "quality_lost":
                lost.append((name, judgement))
                print(f"{end:%m-%d} {name} {judgement.sentence}")
        if work is not None and lost and end - trained >= timedelta(days=DEFINITION.retrain.cooldown_days):
            trained = end
            model = retrain(sites[lost[0][0]], model, end, work, lost[0][1].sentence)
        begin = end
    return served


def one_window(site: Site, model: Model, begin: datetime, end: datetime, served: Any) -> Judgement:
    inside = (site.at >= max(begin, model.since).timestamp()) & (site.at < end.timestamp())
    chosen = np.flatnonzero(inside)
    rows = [site.rows[i] for i in chosen]
    if not rows:
        return Judgement("too_little_data", (), "no rows")
    p = model.predict(rows)
    served[chosen] = p
    baseline = Baseline.from_bytes(model.packed.file("baseline.json"))
    sketches = baseline.sketch(DEFINITION, rows, p.tolist())
    measured = score(DEFINITION.drift, baseline, sketches, measure(p, site.label[chosen]), len(rows))
    before = model.history.setdefault(site.name, [])
    judgement = judge(DEFINITION.drift, measured, before[-3:], baseline.figures)
    before.append(measured)
    return judgement


def retrain(site: Site, model: Model, end: datetime, work: Path, reason: str) -> Model:
    first = end - timedelta(days=DEFINITION.retrain.lookback_days)
    outcome, challenger = fit(site, first, end, champion=model, work=work, reason=reason)
    state = "RELEASED" if challenger else "REJECTED"
    print(f"{end:%m-%d} training at {site.name} on {outcome.metrics.get('rows')} rows: {state}, {outcome.sentence}")
    return challenger or model


def table(sites: dict[str, Site], alone: dict[str, Any], loop: dict[str, Any]) -> None:
    print("\n== log loss / AUC a month: left alone -> the loop")
    for name, site in sites.items():
        for month in range(3, 13):
            first = datetime(2013, month, 1, tzinfo=UTC).timestamp()
            last = datetime(2013 + month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()
            chosen = (site.at >= first) & (site.at < last) & ~np.isnan(alone[name]) & ~np.isnan(loop[name])
            y, a, b = site.label[chosen], alone[name][chosen], loop[name][chosen]
            print(
                f"{name} {month:2d}  {evaluate.log_loss(a, y):.4f} -> {evaluate.log_loss(b, y):.4f}   "
                f"{evaluate.auc(a, y):.3f} -> {evaluate.auc(b, y):.3f}   ({len(y)} rows)"
            )


def iso(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


if __name__ == "__main__":
    main()
