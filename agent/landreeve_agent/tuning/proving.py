"""Carries out one preflight: the release is proven first, then its plan is kept, taken from a hint, or searched for."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from landreeve_models.definition import BadDefinitionError, load_definition
from landreeve_models.samples import BadSampleError, Golden, read_calibration
from safetensors.numpy import save

from landreeve_agent.hardware.cpu import read_cpu
from landreeve_agent.serving.control import Plan, Version
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.model import load
from landreeve_agent.serving.policy import require_accepted
from landreeve_agent.serving.session import Session, import_openvino, open_session
from landreeve_agent.tuning import cache
from landreeve_agent.tuning.attempts import Attempt, Attempts, Clock, Tell, outputs_of
from landreeve_agent.tuning.boxclass import box_class, effective_isa
from landreeve_agent.tuning.candidates import Box, default_plan
from landreeve_agent.tuning.choose import Timed, choose
from landreeve_agent.tuning.inputs import RefusedError, read_release
from landreeve_agent.tuning.measure import Stopwatch, time_batches
from landreeve_agent.tuning.quantise import Kitchen, nncf_missing
from landreeve_agent.tuning.recipes import KINDS
from landreeve_agent.tuning.report import WORK, PreflightReport, Source, Task, Trial, Trying
from landreeve_agent.tuning.search import Search
from landreeve_agent.tuning.weigh import Load, Weight, weigh
from landreeve_agent.tuning.words import tried

CHECK_ROUNDS = 5
_WEIGH_S = 60.0
_CLOSE = 1e-3


class Proving:
    """One task of the preflight child."""

    def __init__(self, task: Task, tell: Tell, environ: Mapping[str, str] = os.environ) -> None:
        self._task = task
        self._tell = tell
        self._clock = Clock(task.time_s)
        self._folder = Path(task.folder)
        self._work = self._folder / WORK
        self._files = task.opening.files()
        tell(Trying(what="read the release", vital=True))
        self._definition, self._gates, self._golden = read_release(self._folder, self._files)
        watch = Stopwatch(self._golden.inputs, task.objective)
        self._attempts = Attempts(
            self._folder, self._work, files=self._files,
            golden=self._golden, gates=self._gates, watch=watch, skip=task.skip, tell=tell,
        )  # fmt: skip
        cpu = read_cpu(Path("/"))
        self._isa = effective_isa(cpu.flags, environ)
        self._devices = self._openvino_devices()
        self._class = box_class(Path("/"), task.threads, self._devices, environ)
        self._fingerprint = cache.fingerprint(self._folder, self._class, task, self._files)
        self._proven_difference = 0.0
        self._metric = float("nan")

    def run(self) -> PreflightReport:
        """Prove the release and choose its plan; raises `RefusedError`."""
        kept = None if self._task.fresh else cache.read_kept(self._folder, self._files)
        self._open_default()
        if kept is not None and kept.report.fingerprint == self._fingerprint and self._holds(kept):
            return self._again(kept)
        self._prove()
        self._work.mkdir(exist_ok=True)
        try:
            return self._chosen()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    # --- the release itself

    def _open_default(self) -> None:
        """Load as the worker will; refuses the release when that fails."""
        plan = default_plan(self._task.wanted)
        self._tell(Trying(what=plan.name, vital=True))
        try:
            require_accepted(self._folder / plan.graph, self._files)
            version = Version("release", "candidate", "", self._task.folder, plan)
            loaded = load(version, files=self._files, checked=True)
            default = self._attempts.add(plan)
            default.session = loaded.opened.session
            default.look_us = self._attempts.watch.look(loaded.opened.session)
        except LoadFailedError as error:
            raise RefusedError(error.cause, error.sentence) from error
        except RunFailedError as error:
            raise RefusedError("golden_mismatch", f"the graph fails on the golden set: {error}") from error
        except ValueError as error:
            raise RefusedError("bad_release", str(error)) from error

    def _prove(self) -> None:
        """Reproduce the golden set at fp32."""
        default = self._attempts.default
        try:
            self._attempts.prove(default)
        except ValueError as error:
            raise RefusedError("bad_release", str(error)) from error
        if not default.accepted or default.verdict is None:
            raise RefusedError("golden_mismatch", default.why)
        self._proven_difference, self._metric = default.verdict.difference, default.verdict.metric

    # --- the choice

    def _chosen(self) -> PreflightReport:
        box = self._box()
        search = Search(self._task, box, self._attempts, self._kitchen(), self._clock)
        winner = search.hinted() if self._task.hints else None
        source: Source = "hint" if winner is not None else "search"
        winner = self._within_limits(winner or search.run())
        self._require_fast(winner)
        attempt = self._attempts.all[winner.plan.name]
        attempt.stage = "won"
        plan = msgspec.structs.replace(winner.plan, batch=search.batch(attempt))
        report = self._report(plan, winner, source)
        self._keep(report, attempt)
        return report

    def _kitchen(self) -> Kitchen:
        try:
            sample = read_calibration(self._folder, self._definition, self._files)
        except BadSampleError as error:
            raise RefusedError("bad_release", str(error)) from error
        spare = max(1, self._task.threads - 1)  # calibration is long: what serves keeps a core
        source, signature = self._folder / default_plan().graph, self._definition.signature()
        return Kitchen(
            source, self._work, sample, isa=self._isa, threads=spare, signature=signature,
            files=self._files, raw=Path(self._task.raw) if self._task.raw else None,
        )  # fmt: skip

    def _box(self) -> Box:
        return Box(
            threads=self._task.threads,
            isa=self._isa,
            openvino_devices=self._devices,
            onnxruntime_devices=_onnxruntime_devices(),
            no_nncf=nncf_missing(),
        )

    def _openvino_devices(self) -> tuple[str, ...]:
        if self._attempts.begin("ask openvino"):
            return ()
        try:
            devices = import_openvino().Core().available_devices
        except (ImportError, RuntimeError):
            return ()  # not installed, or its own libraries are missing: simply no candidate
        return tuple(device.split(".")[0].lower() for device in devices)

    # --- limits

    def _within_limits(self, winner: Timed) -> Timed:
        """The winner, or the next best that takes no more memory and time to be ready than allowed."""
        while True:
            attempt = self._attempts.all[winner.plan.name]
            why = self._over(attempt)
            if not why:
                self._weigh_default()
                return winner
            attempt.refuse("limits", why)
            left = [a.timed for a in self._attempts.passed if a.timed is not None]
            if not left:
                raise RefusedError("too_much_memory" if "MB" in why else "too_slow", why)
            winner = choose(left, self._task.wanted)

    def _over(self, attempt: Attempt) -> str:
        """Which limit the attempt breaks, or the empty text."""
        weight = attempt.weight = self._weigh(attempt.plan)
        if weight.problem:
            return weight.problem
        limits, gates = self._task.limits, self._gates
        most_mb = min(limits.memory_mb or gates.max_rss_mb, gates.max_rss_mb)
        if weight.memory_mb > most_mb:
            whose = "the release" if most_mb == gates.max_rss_mb else "this box"
            return f"needs {weight.memory_mb:.0f} MB, {whose} allows {most_mb:g} MB"
        if limits.cold_start_s and weight.cold_start_s > limits.cold_start_s:
            return f"is ready after {weight.cold_start_s:.1f} s, this box allows {limits.cold_start_s:g} s"
        return ""

    def _weigh_default(self) -> None:
        """For the report: what the default plan costs, where that is not long to find out."""
        default = self._attempts.default
        if default.weight is None and not self._clock.past(0.8) and default.look_us > 1000:
            default.weight = self._weigh(default.plan)

    def _weigh(self, plan: Plan) -> Weight:
        if why := self._attempts.begin(f"weigh {plan.name}"):
            return Weight(problem=why)
        tabular = self._definition.tabular
        names = ("x",) if tabular else tuple(f"input.{spec.name}" for spec in self._definition.tensors)
        row = self._work / "row.safetensors"
        if not row.exists():
            first = {
                name: np.ascontiguousarray(array[:1]) for name, array in zip(names, self._golden.inputs, strict=True)
            }
            self._files.write(row, save(first))
        graph, opening = str(self._attempts.path(plan)), self._files.opening
        load_ = Load(plan=plan, graph=graph, row=str(row), inputs=names, opening=opening)
        return weigh(load_, min(_WEIGH_S, max(5.0, self._clock.left_s)))

    def _require_fast(self, winner: Timed) -> None:
        # The median, not the 95th percentile: another process on a busy box must not condemn a good model.
        if winner.p50_us / 1000 > self._gates.max_p95_ms:
            took = f"one row takes {winner.p50_us / 1000:.1f} ms here"
            raise RefusedError("too_slow", f"{took}, the release allows {self._gates.max_p95_ms:g} ms")

    # --- kept results

    def _holds(self, kept: cache.Kept) -> bool:
        """Whether the kept plan still answers as it did and is no slower than the default."""
        plan = kept.report.plan
        if cache.digest(self._folder / plan.graph, self._files) != kept.graph or self._attempts.begin("the kept plan"):
            return False
        default = self._attempts.default
        probe = _first(self._golden, cache.PROBE_ROWS)
        try:
            if default.session is None or not _reproduces(default.session, probe, self._gates.max_output_difference):
                return False
            opened = open_session(plan, self._files.read(self._folder / plan.graph))
            answers = opened.session.run(probe.inputs)
        except (OSError, LoadFailedError, RunFailedError):
            return False
        same = all(
            np.allclose(np.frombuffer(raw, np.float32), answer.astype(np.float32).reshape(-1), atol=_CLOSE)
            for raw, answer in zip(kept.answers, answers, strict=True)
        )
        return opened.plan == plan and same and self._no_slower(plan, opened.session, default.session)

    def _no_slower(self, plan: Plan, session: Session, default: Session) -> bool:
        if plan.name == self._attempts.default.plan.name:
            return True
        budget_s = min(0.2, self._task.budget_s / 4)
        ratios = []
        for _ in range(CHECK_ROUNDS):
            base, mine = (
                time_batches(s, self._golden.inputs, (1,), budget_s / CHECK_ROUNDS)[0] for s in (default, session)
            )
            ratios.append(mine / base)
        return sorted(ratios)[CHECK_ROUNDS // 2] <= 1

    def _again(self, kept: cache.Kept) -> PreflightReport:
        sentence = f"kept from an earlier preflight on this box and checked again: {kept.report.sentence}"
        if kept.report.source == "cache":
            sentence = kept.report.sentence
        seconds = round(self._clock.spent_s, 2)
        return msgspec.structs.replace(kept.report, source="cache", sentence=sentence, seconds=seconds)

    def _keep(self, report: PreflightReport, attempt: Attempt) -> None:
        plan = report.plan
        if plan.recipe:
            self._files.move(self._attempts.path(plan), self._folder / plan.graph)
        cache.clear(self._folder, plan, KINDS)
        if attempt.session is None:
            return
        answers = attempt.session.run(_first(self._golden, cache.PROBE_ROWS).inputs)
        raw = tuple(np.ascontiguousarray(answer, np.float32).tobytes() for answer in answers)
        graph = cache.digest(self._folder / plan.graph, self._files)
        cache.write_kept(self._folder, cache.Kept(report=report, graph=graph, answers=raw), self._files)

    # --- the report

    def _report(self, plan: Plan, winner: Timed, source: Source) -> PreflightReport:
        weight = self._attempts.all[winner.plan.name].weight
        trials = [attempt.trial() for attempt in self._attempts.all.values()]
        return PreflightReport(
            plan=plan,
            trials=(*trials, *self._serving_now()),
            metric=self._gates.metric,
            metric_value=self._metric,
            golden_rows=self._golden.rows,
            max_difference=self._proven_difference,
            rss_mb=weight.memory_mb if weight else 0.0,
            seconds=round(self._clock.spent_s, 2),
            fingerprint=self._fingerprint,
            sentence=_sentence(winner, self._attempts.default, trials, self._golden, source),
            box_class=self._class,
            objective=self._task.objective,
            source=source,
        )

    def _serving_now(self) -> list[Trial]:
        """The release that serves now, timed by the default plan on its own sample, to compare with."""
        if self._task.current is None or self._attempts.begin("time the release that serves now"):
            return []
        folder, plan = Path(self._task.current), default_plan(self._task.wanted)
        told = Trial(what="serving now", plan=plan, accepted=False, why="", stage="compared")
        try:
            session = open_session(plan, self._files.read(folder / plan.graph)).session
            sample = [x[:32] for x in read_calibration(folder, load_definition(folder, self._files), self._files)]
            (p50_us,) = time_batches(session, sample, (1,), self._task.budget_s / 10)
        except (OSError, BadDefinitionError, BadSampleError, LoadFailedError, RunFailedError) as error:
            return [msgspec.structs.replace(told, why=f"not timed: {error}")]
        return [msgspec.structs.replace(told, accepted=True, why="for comparison", p50_us=round(p50_us, 2))]


def _first(golden: Golden, rows: int) -> Golden:
    return Golden(golden.part(0, rows), tuple(array[:rows] for array in golden.expected), golden.label[:rows])


def _reproduces(session: Session, golden: Golden, most: float) -> bool:
    outputs = outputs_of(session, golden)
    return all(
        got.size == want.size and float(np.abs(got.reshape(want.shape) - want).max()) <= most
        for got, want in zip(outputs, golden.expected, strict=True)
    )


def _onnxruntime_devices() -> tuple[str, ...]:
    import onnxruntime

    known = {"CUDAExecutionProvider": "gpu", "MIGraphXExecutionProvider": "gpu", "QNNExecutionProvider": "npu"}
    found = {known[name] for name in onnxruntime.get_available_providers() if name in known}
    return ("cpu", *sorted(found))


def _sentence(winner: Timed, default: Attempt, trials: list[Trial], golden: Golden, source: Source) -> str:
    proven = f"{golden.rows} golden rows reproduced; {tried(trials)}"
    hinted = ", hinted by the hub" if source == "hint" else ""
    if winner.plan.name == default.plan.name:
        return f"{proven}; the default is best: {winner.p50_us:.0f} µs a row"
    base = default.timed.p50_us if default.timed else winner.p50_us / winner.ratio
    return f"{proven}; {winner.plan.name}{hinted}: {winner.p50_us:.0f} µs a row, the default takes {base:.0f} µs"
