"""A job's rows to a candidate: fit every recipe, let the gate choose, assemble the release. Runs in the trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.layout import Packed, read_folder
from landreeve.release.manifest import BadReleaseError, Lineage
from landreeve_models import evaluate
from landreeve_models.assemble import Parts, assemble, check_parity
from landreeve_models.baseline import Baseline
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.inference import GraphFailedError, predict_graph
from landreeve_models.recipes.catalogue import recipe
from landreeve_models.recipes.contract import BadConfigurationError, Checkpoint, Data
from numpy.typing import NDArray

from landreeve_agent.training.job import MIN_ROWS, Job, LabelledRow, Outcome, Split, canonical, dataset_digest, split

CALIBRATION_ROWS = 512
Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Fit:
    """One recipe's result: its graph, and its fp32 outputs for every row of the job."""

    name: str
    graph: bytes
    output: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """A job's rows in order of time, encoded."""

    rows: list[dict[str, Any]]
    at: tuple[str, ...]
    label: NDArray[np.float32]
    digest: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job with its rows split and encoded: x float32 (n, width)."""

    job: Job
    rows: Rows
    parts: Split
    pipeline: Pipeline
    x: NDArray[np.float32]
    files: Files = PLAIN

    @property
    def label(self) -> NDArray[np.float32]:
        """float32 (n,)."""
        return self.rows.label

    @property
    def held_out(self) -> slice:
        """The rows the gate judges by."""
        return slice(self.parts.holdout.start, self.parts.holdout.stop)


@dataclass(frozen=True, slots=True)
class Champion:
    """The release in use, to be beaten: its outputs on the holdout rows."""

    output: NDArray[np.float32]


def gather(lines: list[LabelledRow]) -> Rows:
    """The rows of a job."""
    return Rows(
        [line.row for line in lines],
        tuple(line.at for line in lines),
        np.array([line.label for line in lines], dtype=np.float32),
        dataset_digest([canonical(line) for line in lines]),
    )


def train(job: Job, rows: Rows, folder: Path, tell: Tell, files: Files = PLAIN) -> tuple[Outcome, Packed | None]:
    """The outcome, with the candidate when it passed. Bad data and configurations are outcomes, not exceptions.

    ``files`` says how checkpoints, and the champion's release, lie on the disk.
    """
    if not job.definition.tabular:
        return _refused("not_trainable", "recipes train on columns: release a new version of a tensor model"), None
    if len(rows.rows) < MIN_ROWS:
        return _refused("too_few_rows", f"{len(rows.rows)} labelled rows, at least {MIN_ROWS} are needed"), None
    if len(set(rows.label.tolist())) < 2:
        return _refused("one_label", "every row has the same label: there is nothing to learn"), None
    work = _prepare(job, rows, files)
    try:
        fits = [_fit(work, name, folder, tell) for name in sorted(job.definition.recipes)]
    except BadConfigurationError as error:
        return _refused("bad_configuration", str(error)), None
    best, verdict, tried = _choose(work, fits, _champion(work))
    metrics = verdict.figures | {"recipe": best.name, "recipes": tried, "rows": len(rows.rows)}
    if not verdict.passed:
        return Outcome(passed=False, cause=verdict.cause, sentence=verdict.sentence, metrics=metrics), None
    tell(0.95, "assembling the release")
    packed = assemble(_parts(work, best, metrics))
    outcome = Outcome(
        passed=True, cause=verdict.cause, sentence=verdict.sentence, metrics=metrics, manifest=packed.digest
    )
    return outcome, packed


def _prepare(job: Job, rows: Rows, files: Files) -> Prepared:
    parts = split(len(rows.rows))
    pipeline = Pipeline.fit([rows.rows[i] for i in parts.training], rows.label[: parts.training.stop], job.definition)
    return Prepared(job, rows, parts, pipeline, pipeline.encode(rows.rows), files)


def _refused(cause: str, sentence: str) -> Outcome:
    return Outcome(passed=False, cause=cause, sentence=sentence)


def _fit(work: Prepared, name: str, folder: Path, tell: Tell) -> Fit:
    recipes = work.job.definition.recipes
    fit, validation = slice(work.parts.fit.stop), slice(work.parts.validation.start, work.parts.validation.stop)
    share = 0.9 / len(recipes)
    start = 0.02 + share * sorted(recipes).index(name)
    data = Data(work.x[fit], work.label[fit], work.x[validation], work.label[validation])
    checkpoint = Checkpoint(folder / f"{name}.checkpoint.safetensors", work.files)
    told = lambda done, words: tell(start + share * done, f"{name}: {words}")  # noqa: E731
    fitted = recipe(name)(data, recipes[name], checkpoint, told)
    graph = fitted.export_onnx()
    check_parity(fitted.predict(work.x), graph, work.x)
    return Fit(name, graph, predict_graph(graph, work.x))


def _champion(work: Prepared) -> Champion | None:
    """The champion's outputs on the holdout, or None when there is none or it cannot be run: a release that no
    longer works must not stop its own replacement."""
    if not work.job.champion:
        return None
    try:
        release = read_folder(Path(work.job.champion), work.files)
        held_out = [work.rows.rows[i] for i in work.parts.holdout]
        x = Pipeline.from_bytes(release.file("features.json")).encode(held_out)
        return Champion(predict_graph(release.file("model.onnx"), x))
    except (BadReleaseError, GraphFailedError):
        return None


def _choose(
    work: Prepared, fits: list[Fit], champion: Champion | None
) -> tuple[Fit, evaluate.Verdict, dict[str, dict[str, float]]]:
    truth = work.label[work.held_out]
    tried = {fit.name: evaluate.summary(fit.output[work.held_out], truth) for fit in fits}
    best = min(fits, key=lambda fit: tried[fit.name]["log_loss"])
    base_rate = float(work.label[: work.parts.training.stop].mean())
    rival = champion.output if champion else None
    return best, evaluate.gate(truth, best.output[work.held_out], rival, base_rate), tried


def _parts(work: Prepared, best: Fit, metrics: dict[str, Any]) -> Parts:
    stop = work.parts.training.stop
    golden = np.array(work.parts.golden())
    sample = np.sort(np.random.default_rng(0).permutation(stop)[:CALIBRATION_ROWS])
    windows = _windows(work.job, work.rows.at[:stop])
    baseline = Baseline.fit(
        work.job.definition, work.rows.rows[:stop], best.output[:stop], windows, metrics["challenger"]
    )
    return Parts(
        definition=work.job.definition,
        pipeline=work.pipeline,
        graph=best.graph,
        baseline=baseline,
        calibration=work.x[sample],
        golden=work.x[golden],
        golden_labels=work.label[golden],
        lineage=_lineage(work.job, work.rows, best),
        created=work.job.created,
        figures=metrics,
        libraries=_libraries(best.name),
    )


def _lineage(job: Job, rows: Rows, best: Fit) -> Lineage:
    return Lineage(
        run=job.run,
        site=job.site,
        dataset=rows.digest,
        dataset_rows=len(rows.rows),
        dataset_first=job.request.first,
        dataset_last=job.request.last,
        code=job.code,
        recipe=best.name,
        configuration=dict(job.definition.recipes[best.name]),
        parent=job.champion_release,
        reason=job.request.reason,
    )


def _windows(job: Job, at: tuple[str, ...]) -> NDArray[np.int64]:
    """The number of the drift window each moment lies in."""
    length = job.definition.window_days * 86_400
    return np.array([int(datetime.fromisoformat(text).timestamp()) // length for text in at], dtype=np.int64)


def _libraries(name: str) -> Mapping[str, str]:
    used = {"boosting": ("scikit-learn",), "mlp": ("torch",)}
    return {library: metadata.version(library) for library in ("numpy", "onnx", *used.get(name, ()))}
