"""A version, loaded and warm: its columns, its feature pipeline, its session."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from landreeve.blobs.files import PLAIN, Files
from landreeve.release.manifest import BadReleaseError, Column
from landreeve_models.definition import BadDefinitionError, Definition, load_definition
from landreeve_models.features.pipeline import Pipeline
from landreeve_models.samples import DTYPES, BadSampleError, read_first_row

from landreeve_agent.serving.control import Plan, Version
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.interface import Interface, is_finite
from landreeve_agent.serving.memory import Memory
from landreeve_agent.serving.messages import Infer
from landreeve_agent.serving.policy import require_accepted
from landreeve_agent.serving.recorder import Recorder
from landreeve_agent.serving.remote import OnEnd, RemoteSession
from landreeve_agent.serving.resident import Resident
from landreeve_agent.serving.session import Array, Opened, open_session

RELEASED_GRAPH = Plan().graph
CHILD_BACKENDS = {"torch"}  # too large and too free with its threads to share a process with others
UNLIMITED_BYTES = 1 << 60
TINY = Path(__file__).parents[1] / "hardware/tiny.onnx"


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
    def resident(self) -> Resident | None:
        """The session's memory, when it was loaded by `load`."""
        session = self.opened.session
        return session if isinstance(session, Resident) else None

    def as_now(self) -> "LoadedModel":
        """The same version by how its session runs now: it may have moved, woken, or fallen asleep."""
        resident = self.resident
        return self if resident is None else replace(self, opened=resident.opened, quick=resident.quick)

    @property
    def columns(self) -> Sequence[Column]:
        """The inputs as callers know them."""
        return self.definition.columns

    def feeds(self, request: Infer) -> list[Array]:
        """The request's rows as the graph takes them: float32 (rows, width), or a tensor model's inputs."""
        if self.pipeline is None:
            return request.tensors
        if request.records is not None:
            return [self.pipeline.encode(request.dicts())]
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
            if answer.dtype.kind == "f" and not is_finite(answer):
                raise RunFailedError("the graph answered NaN or infinity")
        return answers


def load(
    version: Version,
    *,
    files: Files = PLAIN,
    checked: bool = False,
    memory: Memory | None = None,
    asleep: bool = False,
    on_end: OnEnd | None = None,
    recorder: Recorder | None = None,
) -> LoadedModel:
    """Load and warm a version; `LoadFailedError` says why it cannot serve.

    ``files`` reads the version's folder.
    ``checked`` skips the graph's policy: only for a version that a worker of this supervisor has served before.
    ``asleep`` leaves the graph to the first run. ``on_end`` hears when the version's own process ends; ``recorder``
    notes what goes on in this one.
    """
    folder, name = Path(version.folder), f"{version.model} {version.version}"
    plan = _available(folder, version.plan)
    graph = folder / plan.graph
    try:
        definition = load_definition(folder, files)
        pipeline = Pipeline.from_bytes(files.read(folder / "features.json")) if definition.tabular else None
        graph_bytes = files.size(graph)
        if not checked:
            require_accepted(graph, files)
        sample = _sample(folder, definition, files)
    except (OSError, BadReleaseError, BadDefinitionError) as error:
        raise LoadFailedError("bad_release", f"{name}: {error}") from error
    except LoadFailedError as error:
        raise LoadFailedError(error.cause, f"{name}: {error.sentence}") from error
    room = memory or Memory(UNLIMITED_BYTES)
    isolated = version.isolated or plan.backend in CHILD_BACKENDS
    opener = _Opener(name, graph, files, isolated=isolated, runtimes=room.runtimes, on_end=on_end)
    seen = recorder is not None and not isolated
    tracks = recorder.tracks(version.model, version.version, version.release) if recorder and seen else None
    resident = Resident(
        name, plan, opener.open, sample, graph_bytes=graph_bytes, memory=room, prepare=opener.prepare, tracks=tracks
    )
    if not asleep:
        _wake(resident)
    interface = Interface.of(version.model, version.version, definition, pipeline.ranks if pipeline else None)
    return LoadedModel(version, definition, pipeline, resident.opened, interface, resident.quick)


def _wake(resident: Resident) -> None:
    try:
        resident.wake()
    except LoadFailedError:
        resident.close()
        raise


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens one version's graph, here or in a process of its own."""

    name: str
    graph: Path
    files: Files
    isolated: bool
    runtimes: set[str]
    on_end: OnEnd | None

    def prepare(self, plan: Plan) -> None:
        """Start the runtime with a tiny graph: the 20 MB it takes at its first session are no model's cost."""
        if self.isolated or plan.backend in self.runtimes:
            return
        self.runtimes.add(plan.backend)
        with contextlib.suppress(LoadFailedError):  # a runtime that is missing is told of by the model's own opening
            open_session(Plan(backend=plan.backend), TINY.read_bytes())

    def open(self, plan: Plan) -> Opened:
        """The graph by that plan; `LoadFailedError` names the version."""
        try:
            if self.isolated:
                return RemoteSession.open(plan, self.graph, self.files, on_end=self.on_end).opened
            return open_session(plan, self.files.read(self.graph))
        except OSError as error:
            raise LoadFailedError("bad_release", f"{self.name}: {error}") from error
        except LoadFailedError as error:
            raise LoadFailedError(error.cause, f"{self.name}: {error.sentence}") from error


def _available(folder: Path, plan: Plan) -> Plan:
    """The plan, or the default one when the graph that tuning made is gone: that file is no part of the release."""
    if plan.graph == RELEASED_GRAPH or (folder / plan.graph).exists():
        return plan
    return Plan(wanted=plan.wanted, reason=f"{plan.graph} is gone: default plan until the next preflight")


def _sample(folder: Path, definition: Definition, files: Files) -> list[Array]:
    """One row to warm up with: a real one where the release has a calibration set, else zeros."""
    if (folder / "calibration.safetensors").exists():
        try:
            return list(read_first_row(folder, definition, files))
        except BadSampleError as error:
            raise LoadFailedError("bad_release", f"calibration.safetensors: {error}") from error
    if definition.tabular:
        return [np.zeros((1, len(definition.columns)), np.float32)]
    return [np.zeros([1 if axis == -1 else axis for axis in t.shape], DTYPES[t.datatype]) for t in definition.tensors]
