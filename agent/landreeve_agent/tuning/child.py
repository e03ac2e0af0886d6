"""The preflight child: ``python -m landreeve_agent.tuning.child --parent PID``.

Reads one `Task` frame, tells each step before it begins (`Trying`), and ends with a report or a refusal. It may
hang or die at any step: its parent then knows which one, and starts another child without that candidate.
"""

import argparse
import hashlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np
from landreeve_models.definition import load_definition
from landreeve_models.samples import Golden, read_calibration

from landreeve_agent.hardware.cpu import read_cpu
from landreeve_agent.hardware.files import read_text
from landreeve_agent.serving.control import Plan, Version, frame
from landreeve_agent.serving.deathsig import die_with_parent, prefer_for_oom
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.model import load
from landreeve_agent.serving.policy import require_accepted
from landreeve_agent.serving.server import rss_bytes
from landreeve_agent.serving.session import Array, Session, import_openvino, open_session
from landreeve_agent.tuning.candidates import INT8_GRAPH, Box, candidates, default_plan
from landreeve_agent.tuning.choose import Timed, choose, joined_rows
from landreeve_agent.tuning.gate import Verdict, judge
from landreeve_agent.tuning.inputs import RefusedError, read_release
from landreeve_agent.tuning.measure import time_batches, time_plans
from landreeve_agent.tuning.quantise import quantise
from landreeve_agent.tuning.report import FromChild, PreflightFailed, PreflightReport, Task, Trial, Trying

JOIN_ROWS = 32
_MAX_ADDRESS_SPACE_BYTES = 16 * 1024**3
_MAX_FILE_BYTES = 2 * 1024**3
_CHUNK_ROWS = 256
Tell = Callable[[FromChild], None]


class Proving:
    """One task: the release is proven first, then every plan that might pay is tried against it."""

    def __init__(self, task: Task, tell: Tell) -> None:
        self._task = task
        self._tell = tell
        self._folder = Path(task.folder)
        self._isa = frozenset(read_cpu(Path("/")).flags)
        self._default = default_plan(task.wanted)
        self._sessions: dict[Plan, Session] = {}
        self._verdicts: dict[Plan, Verdict] = {}
        tell(Trying(what="read the release", vital=True))
        self._definition, self._gates, self._golden = read_release(self._folder)

    def run(self) -> PreflightReport:
        """Prove the release and choose its plan; raises `RefusedError`."""
        began = time.monotonic()
        rss_mb = self._prove()
        for plan in candidates(self._box(), self._task.wanted)[1:]:
            self._try(plan)
        self._tell(Trying(what="time the plans", vital=True))
        timed = time_plans(self._sessions, self._golden.inputs, self._task.budget_s)
        self._require_fast(timed[0])
        winner = choose(timed, self._task.wanted)
        proven = self._verdicts[self._default]
        return PreflightReport(
            plan=msgspec.structs.replace(winner.plan, batch=self._batch(winner.plan)),
            trials=(*self._trials(timed), *self._serving_now()),
            metric=self._gates.metric,
            metric_value=proven.metric,
            golden_rows=self._golden.rows,
            max_difference=proven.difference,
            rss_mb=rss_mb,
            seconds=round(time.monotonic() - began, 2),
            fingerprint=_fingerprint(self._folder, self._isa, self._task.threads),
            sentence=_sentence(winner, timed, self._golden),
        )

    def _prove(self) -> float:
        """Load as the worker will, and reproduce the golden set at fp32; the resident memory in MB that takes."""
        plan = self._default
        self._tell(Trying(what=plan.name, vital=True))
        try:
            require_accepted(self._folder / plan.graph)
            loaded = load(Version("release", "candidate", "", self._task.folder, plan), checked=True)
            rss_mb = _peak_mb()
            verdict = judge(_outputs(loaded.opened.session, self._golden), self._golden, self._gates, exact=True)
        except LoadFailedError as error:
            raise RefusedError(error.cause, error.sentence) from error
        except RunFailedError as error:
            raise RefusedError("golden_mismatch", f"the graph fails on the golden set: {error}") from error
        except ValueError as error:
            raise RefusedError("bad_release", str(error)) from error
        if not verdict.accepted:
            raise RefusedError("golden_mismatch", verdict.why)
        if rss_mb > self._gates.max_rss_mb:
            allowed = f"the release allows {self._gates.max_rss_mb:g} MB"
            raise RefusedError("too_much_memory", f"needs {rss_mb:.0f} MB, {allowed}")
        self._sessions[plan], self._verdicts[plan] = loaded.opened.session, verdict
        return round(rss_mb, 1)

    def _box(self) -> Box:
        return Box(
            threads=self._task.threads,
            isa=self._isa,
            openvino_devices=self._openvino_devices(),
            onnxruntime_devices=_onnxruntime_devices(),
            int8=self._quantised(),
        )

    def _begin(self, what: str) -> str:
        """Tell of an optional step; why it is to be left out, or the empty text."""
        why = self._task.skip.get(what, "")
        if not why:
            self._tell(Trying(what=what, vital=False))
        return why

    def _quantised(self) -> bool:
        why = self._begin("quantise to int8")
        if not why:
            try:
                sample = read_calibration(self._folder, self._definition)
                quantise(self._folder / self._default.graph, self._folder / INT8_GRAPH, sample, self._isa)
            except ValueError as error:  # also NotQuantisedError: no int8 graph is no fault of the release
                why = str(error)
        if why:
            self._refuse(Plan(precision="int8", graph=INT8_GRAPH, wanted=self._task.wanted), why)
        return not why

    def _openvino_devices(self) -> tuple[str, ...]:
        if self._begin("ask openvino"):
            return ()
        try:
            devices = import_openvino().Core().available_devices
        except (ImportError, RuntimeError):
            return ()  # not installed, or its own libraries are missing: simply no candidate
        return tuple(device.split(".")[0].lower() for device in devices)

    def _try(self, plan: Plan) -> None:
        why = self._begin(plan.name)
        if why:
            self._refuse(plan, why)
            return
        try:
            opened = open_session(plan, (self._folder / plan.graph).read_bytes())
            if opened.plan != plan:
                self._refuse(plan, opened.reason)
                return
            outputs = _outputs(opened.session, self._golden)
        except (LoadFailedError, RunFailedError) as error:
            self._refuse(plan, str(error))
            return
        verdict = self._verdicts[plan] = judge(outputs, self._golden, self._gates, exact=plan.precision == "fp32")
        if verdict.accepted:
            self._sessions[plan] = opened.session

    def _refuse(self, plan: Plan, why: str) -> None:
        self._verdicts[plan] = Verdict(accepted=False, difference=0.0, metric=float("nan"), why=why)

    def _require_fast(self, default: Timed) -> None:
        # The median, not the 95th percentile: another process on a busy box must not condemn a good model.
        if default.p50_us / 1000 > self._gates.max_p95_ms:
            took = f"one row takes {default.p50_us / 1000:.1f} ms here"
            raise RefusedError("too_slow", f"{took}, the release allows {self._gates.max_p95_ms:g} ms")

    def _batch(self, winner: Plan) -> int:
        """Whether joining waiting rows pays with the winner."""
        session = next(session for plan, session in self._sessions.items() if plan.name == winner.name)
        one, many = time_batches(session, self._golden.inputs, (1, JOIN_ROWS), self._task.budget_s / 10)
        return joined_rows(one, many, JOIN_ROWS)

    def _trials(self, timed: list[Timed]) -> list[Trial]:
        times = {t.plan: t for t in timed}
        return [_trial(plan, verdict, times.get(plan)) for plan, verdict in self._verdicts.items()]

    def _serving_now(self) -> list[Trial]:
        """The release that serves now, timed by the default plan on its own sample, to compare with."""
        if self._task.current is None or self._begin("time the release that serves now"):
            return []
        folder = Path(self._task.current)
        try:
            session = open_session(self._default, (folder / self._default.graph).read_bytes()).session
            sample = [x[:32] for x in read_calibration(folder, load_definition(folder))]
            (p50_us,) = time_batches(session, sample, (1,), self._task.budget_s / 10)
        except (OSError, ValueError, LoadFailedError, RunFailedError) as error:
            why = f"not timed: {error}"
            return [Trial(what="serving now", plan=self._default, accepted=False, why=why)]
        why = "for comparison"
        return [Trial(what="serving now", plan=self._default, accepted=True, why=why, p50_us=round(p50_us, 2))]


def _peak_mb() -> float:
    """The most memory this process has held, in MB.

    Not `ru_maxrss`: Linux carries that over from the parent through fork and exec, so a large supervisor would make
    every release look too large. VmHWM begins anew with the program.
    """
    for line in read_text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return rss_bytes() / 1e6


def _outputs(session: Session, golden: Golden) -> list[Array]:
    """The graph's outputs for the whole golden set, computed in pieces."""
    pieces = [session.run(golden.part(i, i + _CHUNK_ROWS)) for i in range(0, golden.rows, _CHUNK_ROWS)]
    return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]


def _onnxruntime_devices() -> tuple[str, ...]:
    import onnxruntime

    known = {"CUDAExecutionProvider": "gpu", "MIGraphXExecutionProvider": "gpu", "QNNExecutionProvider": "npu"}
    found = {known[name] for name in onnxruntime.get_available_providers() if name in known}
    return ("cpu", *sorted(found))


def _trial(plan: Plan, verdict: Verdict, timed: Timed | None) -> Trial:
    return Trial(
        what=plan.name,
        plan=plan,
        accepted=verdict.accepted,
        why=verdict.why,
        metric=None if math.isnan(verdict.metric) else round(verdict.metric, 6),
        p50_us=timed.p50_us if timed else None,
        p95_us=timed.p95_us if timed else None,
        cpu_us=timed.cpu_us if timed else None,
    )


def _fingerprint(folder: Path, isa: frozenset[str], threads: int) -> str:
    """A hash of what the choice depends on: graph, runtimes, instruction set, threads."""
    parts = [hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(), *sorted(isa), str(threads)]
    for package in ("onnxruntime", "openvino"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _sentence(winner: Timed, timed: list[Timed], golden: Golden) -> str:
    default = timed[0]
    proven = f"{golden.rows} golden rows reproduced"
    if winner.plan.name == default.plan.name:
        return f"{proven}; {len(timed)} plans timed, the default is best: {winner.p50_us:.0f} µs a row"
    return f"{proven}; {winner.plan.name}: {winner.p50_us:.0f} µs a row, the default takes {default.p50_us:.0f} µs"


def _limit(task: Task) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE_BYTES, _MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    cpu_s = int(task.budget_s * task.threads * 10) + 120
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 5))


def main() -> None:
    """Carry out one task from stdin."""
    parser = argparse.ArgumentParser(prog="landreeve-preflight")
    parser.add_argument("--parent", type=int, required=True)
    die_with_parent(parser.parse_args().parent)
    prefer_for_oom()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor ends us
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not break a frame
    length = int.from_bytes(sys.stdin.buffer.read(4), "big")
    task = msgspec.json.decode(sys.stdin.buffer.read(length), type=Task)
    _limit(task)

    def tell(message: FromChild) -> None:
        out.write(frame(message))
        out.flush()

    try:
        tell(Proving(task, tell).run())
    except RefusedError as error:
        tell(PreflightFailed(cause=error.cause, sentence=error.sentence))


if __name__ == "__main__":
    main()
