"""A version, loaded and warm: its columns, its feature pipeline, its session."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from landreeve.release.manifest import BadReleaseError, Column
from landreeve_models.definition import BadDefinitionError, Definition, load_definition
from landreeve_models.features.pipeline import Pipeline
from safetensors import SafetensorError
from safetensors.numpy import load_file

from landreeve_agent.serving.control import Plan, Version
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.oip import Infer
from landreeve_agent.serving.policy import require_accepted
from landreeve_agent.serving.session import Opened, Tensor, open_session

WARM_RUNS = 5
RELEASED_GRAPH = Plan().graph
INLINE_BELOW_S = 0.002  # a graph faster than this runs on the event loop: a thread handoff would cost more


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything needed to answer for one version. ``quick`` graphs run on the event loop itself."""

    version: Version
    definition: Definition
    pipeline: Pipeline
    opened: Opened
    interface: Interface
    quick: bool

    @property
    def columns(self) -> Sequence[Column]:
        """The inputs as callers know them."""
        return self.definition.columns

    def tensor(self, request: Infer) -> Tensor:
        """The request's rows as the graph takes them, float32 (rows, width)."""
        return self.pipeline.encode_columns(request.columns, request.rows)

    def run(self, x: Tensor) -> Tensor:
        """Probabilities, float32 (rows,); `RunFailedError` when the graph fails or answers with no number."""
        p = self.opened.session.run(x)
        if p.shape != (len(x),):
            raise RunFailedError(f"the graph answered {p.shape[0]} values for {len(x)} rows")
        if not np.isfinite(p).all():
            raise RunFailedError("the graph answered NaN or infinity")
        return p


def load(version: Version, *, checked: bool = False) -> LoadedModel:
    """Load and warm a version; `LoadFailedError` says why it cannot serve.

    ``checked`` skips the graph's policy: only for a version that a worker of this supervisor has served before.
    """
    folder = Path(version.folder)
    plan = _available(folder, version.plan)
    graph_path = folder / plan.graph
    try:
        definition = load_definition(folder)
        pipeline = Pipeline.from_bytes((folder / "features.json").read_bytes())
        if not checked:
            require_accepted(graph_path)
        opened = open_session(plan, graph_path.read_bytes())
    except (OSError, BadReleaseError, BadDefinitionError) as error:
        raise LoadFailedError("bad_release", f"{version.model} {version.version}: {error}") from error
    except LoadFailedError as error:
        raise LoadFailedError(error.cause, f"{version.model} {version.version}: {error.sentence}") from error
    quick = _warm(version, opened, _sample(folder, pipeline.width)) < INLINE_BELOW_S
    interface = Interface.of(version.model, version.version, definition.columns, definition.output)
    return LoadedModel(version, definition, pipeline, opened, interface, quick)


def _available(folder: Path, plan: Plan) -> Plan:
    """The plan, or the default one when the graph that tuning made is gone: that file is no part of the release."""
    if plan.graph == RELEASED_GRAPH or (folder / plan.graph).exists():
        return plan
    return Plan(wanted=plan.wanted, reason=f"{plan.graph} is gone: default plan until the next preflight")


def _sample(folder: Path, width: int) -> Tensor:
    """One row to warm up with: a real one where the release has a calibration set, else zeros."""
    path = folder / "calibration.safetensors"
    try:
        x = load_file(path)["x"][:1] if path.exists() else np.zeros((1, width), np.float32)
    except (OSError, KeyError, SafetensorError) as error:
        raise LoadFailedError("bad_release", f"calibration.safetensors: {error}") from error
    if x.shape != (1, width):
        raise LoadFailedError(
            "bad_release", f"calibration.safetensors: shape {x.shape}, the pipeline's width is {width}"
        )
    return np.ascontiguousarray(x, np.float32)


def _warm(version: Version, opened: Opened, x: Tensor) -> float:
    """Run the graph until it is warm; the fastest run in seconds.

    A NaN answer passes here: whether the model is any good is preflight's and probation's question.
    """
    best = float("inf")
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        try:
            p = opened.session.run(x)
        except RunFailedError as error:
            raise LoadFailedError("run_failed", f"{version.model} {version.version}: {error}") from error
        best = min(best, time.perf_counter() - began)
    if p.shape != (1,):
        raise LoadFailedError("bad_graph", f"{version.model} {version.version}: answers shape {p.shape} for one row")
    return best
