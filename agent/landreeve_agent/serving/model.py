"""A version, loaded and warm: its columns, its feature pipeline, its session."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from landreeve.release.manifest import BadReleaseError, Column
from landreeve_models.definition import BadDefinitionError, Definition, load_definition
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.samples import DTYPES, BadSampleError, read_calibration

from landreeve_agent.serving.control import Plan, Version
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.oip import Infer
from landreeve_agent.serving.policy import require_accepted
from landreeve_agent.serving.session import Array, Opened, open_session

WARM_RUNS = 5
RELEASED_GRAPH = Plan().graph
INLINE_BELOW_S = 0.002  # a graph faster than this runs on the event loop: a thread handoff would cost more


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything needed to answer for one version; a tensor model has no ``pipeline``. ``quick`` graphs run on the
    event loop itself."""

    version: Version
    definition: Definition
    pipeline: Pipeline | None
    opened: Opened
    interface: Interface
    quick: bool

    @property
    def columns(self) -> Sequence[Column]:
        """The inputs as callers know them."""
        return self.definition.columns

    def feeds(self, request: Infer) -> list[Array]:
        """The request's rows as the graph takes them: float32 (rows, width), or a tensor model's inputs."""
        if self.pipeline is None:
            return request.tensors
        return [self.pipeline.encode_columns(request.columns, request.rows)]

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The outputs, each with a row for each row of the feeds, float32 (rows,) of a tabular model.

        `RunFailedError` when the graph fails or answers with no number.
        """
        rows = len(feeds[0])
        answers = self.opened.session.run(feeds)
        if self.pipeline is not None:
            answers = [np.asarray(answers[0], np.float32).reshape(-1)]
        for answer in answers:
            if len(answer) != rows:
                raise RunFailedError(f"the graph answered {len(answer)} values for {rows} rows")
            if answer.dtype.kind == "f" and not np.isfinite(answer).all():
                raise RunFailedError("the graph answered NaN or infinity")
        return answers


def load(version: Version, *, checked: bool = False) -> LoadedModel:
    """Load and warm a version; `LoadFailedError` says why it cannot serve.

    ``checked`` skips the graph's policy: only for a version that a worker of this supervisor has served before.
    """
    folder = Path(version.folder)
    plan = _available(folder, version.plan)
    graph_path = folder / plan.graph
    try:
        definition = load_definition(folder)
        pipeline = Pipeline.from_bytes((folder / "features.json").read_bytes()) if definition.tabular else None
        if not checked:
            require_accepted(graph_path)
        opened = open_session(plan, graph_path.read_bytes())
    except (OSError, BadReleaseError, BadDefinitionError) as error:
        raise LoadFailedError("bad_release", f"{version.model} {version.version}: {error}") from error
    except LoadFailedError as error:
        raise LoadFailedError(error.cause, f"{version.model} {version.version}: {error.sentence}") from error
    quick = _warm(version, opened, _sample(folder, definition)) < INLINE_BELOW_S
    interface = Interface.of(version.model, version.version, definition)
    return LoadedModel(version, definition, pipeline, opened, interface, quick)


def _available(folder: Path, plan: Plan) -> Plan:
    """The plan, or the default one when the graph that tuning made is gone: that file is no part of the release."""
    if plan.graph == RELEASED_GRAPH or (folder / plan.graph).exists():
        return plan
    return Plan(wanted=plan.wanted, reason=f"{plan.graph} is gone: default plan until the next preflight")


def _sample(folder: Path, definition: Definition) -> list[Array]:
    """One row to warm up with: a real one where the release has a calibration set, else zeros."""
    if (folder / "calibration.safetensors").exists():
        try:
            return [np.ascontiguousarray(x[:1]) for x in read_calibration(folder, definition)]
        except BadSampleError as error:
            raise LoadFailedError("bad_release", f"calibration.safetensors: {error}") from error
    if definition.tabular:
        return [np.zeros((1, len(definition.columns)), np.float32)]
    return [np.zeros([1 if axis == -1 else axis for axis in t.shape], DTYPES[t.datatype]) for t in definition.tensors]


def _warm(version: Version, opened: Opened, x: Sequence[Array]) -> float:
    """Run the graph until it is warm; the fastest run in seconds.

    A NaN answer passes here: whether the model is any good is preflight's and probation's question.
    """
    best = float("inf")
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        try:
            outputs = opened.session.run(x)
        except RunFailedError as error:
            raise LoadFailedError("run_failed", f"{version.model} {version.version}: {error}") from error
        best = min(best, time.perf_counter() - began)
    for output in outputs:
        if output.shape[:1] != (1,):
            shape = list(output.shape)
            raise LoadFailedError("bad_graph", f"{version.model} {version.version}: answers shape {shape} for one row")
    return best
