"""Preflight with its real child: good releases pass, damaged ones die with their cause, bad plans cost themselves."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from landreeve.release.manifest import Gates
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.deathsig import ASIDE_NICE, ASIDE_OOM, HOST_OOM, WORKER_OOM
from landreeve_agent.tuning.preflight import Preflight
from landreeve_agent.tuning.report import Limits, PreflightFailed, PreflightReport
from safetensors.numpy import load_file, save_file

from tests.agent.onnx_models import graph, write_release
from tests.models.tensor_releases import image_release, text_release

QUICK = Preflight(budget_s=0.3)


async def preflight(folder: Path, wanted: str = "auto") -> PreflightReport | PreflightFailed:
    return await QUICK.run(folder, threads=2, deadline_s=60, wanted=wanted)


async def refused(folder: Path) -> PreflightFailed:
    ended = await preflight(folder)
    assert isinstance(ended, PreflightFailed)
    return ended


async def test_a_good_release_is_proven_and_every_trial_is_told(tmp_path: Path) -> None:
    ended = await QUICK.run(
        write_release(tmp_path / "new"), current=write_release(tmp_path / "old"), threads=2, deadline_s=60
    )
    assert isinstance(ended, PreflightReport)
    trials = {trial.what: trial for trial in ended.trials}
    default = trials["onnxruntime cpu fp32 1 thread"]
    assert default.accepted
    assert {"onnxruntime cpu fp32 2 threads", "onnxruntime cpu int8 qdq 1 thread", "serving now"} <= set(trials)
    assert ended.max_difference < 1e-5
    assert ended.golden_rows == 400
    winner = trials[ended.plan.name]
    assert winner.accepted
    assert winner.p50_us is not None
    assert default.p50_us is not None
    assert ended.rows()[0]["what"] == default.what
    assert ended.sentence.startswith("400 golden rows reproduced")


@pytest.mark.skipif(sys.platform != "linux", reason="priorities and the choice of the OOM killer are Linux's")
async def test_the_child_gives_way_to_what_serves(tmp_path: Path) -> None:
    """Processor and memory are the worker's: a preflight runs on what is left, and is the first to go."""
    task = asyncio.create_task(QUICK.run(image_release(tmp_path / "new"), threads=2, deadline_s=60))
    seen: set[tuple[str, int, int]] = set()
    while not task.done():
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError, IndexError):  # it has just ended
                score = int(Path(f"/proc/{child.pid}/oom_score_adj").read_text())  # noqa: ASYNC240 - no disk behind it
                seen.add((child.cmdline()[2], child.nice(), score))
        await asyncio.sleep(0.01)
    assert isinstance(await task, PreflightReport)
    assert {name for name, *how in seen if how == [ASIDE_NICE, ASIDE_OOM]} >= {"landreeve_agent.tuning.child"}
    assert ASIDE_OOM > HOST_OOM > WORKER_OOM


async def test_a_large_parent_does_not_count_as_the_releases_memory(tmp_path: Path) -> None:
    large = np.ones(80_000_000)  # 640 MB, more than the default gate allows
    ended = await preflight(write_release(tmp_path))
    assert isinstance(ended, PreflightReport)
    assert ended.rss_mb < large.nbytes / 1e6 / 2


async def test_damaged_weights_are_a_golden_mismatch_in_words(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    (folder / "model.onnx").write_bytes(graph(seed=8))
    ended = await refused(folder)
    assert ended.cause == "golden_mismatch"
    assert "golden row" in ended.sentence


async def test_a_graph_that_answers_nan_is_a_golden_mismatch(tmp_path: Path) -> None:
    ended = await refused(write_release(tmp_path, nan=True))
    assert (ended.cause, ended.sentence) == ("golden_mismatch", "400 of 400 golden outputs are NaN or infinite")


async def test_a_merely_worse_model_passes_because_it_reproduces_itself(tmp_path: Path) -> None:
    assert isinstance(await preflight(write_release(tmp_path, bias=3.0)), PreflightReport)


async def test_a_wanted_device_that_is_not_there_leaves_its_reason(tmp_path: Path) -> None:
    ended = await preflight(write_release(tmp_path), wanted="npu")
    assert isinstance(ended, PreflightReport)
    assert (ended.plan.device, ended.plan.wanted) == ("cpu", "npu")
    assert ended.plan.reason == "no plan for NPU works on this box"


def external(folder: Path) -> None:
    """A graph whose weights lie in another file."""
    model = onnx.load_model_from_string((folder / "model.onnx").read_bytes())
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def short_golden(folder: Path) -> None:
    golden = load_file(folder / "golden.safetensors")
    save_file(golden | {"expected": np.zeros(3, np.float32)}, folder / "golden.safetensors")


def narrow_golden(folder: Path) -> None:
    golden = load_file(folder / "golden.safetensors")
    save_file(golden | {"x": np.ascontiguousarray(golden["x"][:, :2])}, folder / "golden.safetensors")


@pytest.mark.parametrize(
    ("damage", "cause", "words"),
    [
        (external, "bad_graph", "lies outside the file"),
        (short_golden, "bad_release", "tensors have [3, 400] rows"),
        (narrow_golden, "bad_release", "shape [400, 2] does not fit [-1, 4]"),
        (lambda f: (f / "model.onnx").write_bytes(b"x" * 99), "bad_graph", "no ONNX graph"),
        (lambda f: (f / "golden.safetensors").unlink(), "bad_release", "golden.safetensors"),
        (lambda f: (f / "config.json").write_bytes(b"{}"), "bad_release", "config.json"),
    ],
)
async def test_a_release_that_is_none_is_refused_with_its_place(
    tmp_path: Path, damage: Callable[[Path], None], cause: str, words: str
) -> None:
    folder = write_release(tmp_path)
    damage(folder)
    ended = await refused(folder)
    assert ended.cause == cause
    assert words in ended.sentence


@pytest.mark.parametrize(
    ("gates", "cause"),
    [
        (Gates(max_p95_ms=0.0001), "too_slow"),
        (Gates(max_rss_mb=1), "too_much_memory"),
        (Gates(metric="x"), "bad_release"),
    ],
)
async def test_a_limit_of_the_release_that_this_box_breaks_is_the_cause(
    tmp_path: Path, gates: Gates, cause: str
) -> None:
    assert (await refused(write_release(tmp_path, gates=gates))).cause == cause


_FAKE = """
import os, signal, sys, time
import msgspec
from landreeve_agent.serving.control import Plan, frame
from landreeve_agent.tuning.report import PreflightReport, Task, Trial, Trying
size = int.from_bytes(sys.stdin.buffer.read(4), "big")
task = msgspec.json.decode(sys.stdin.buffer.read(size), type=Task)
def tell(message):
    os.write(1, frame(message))
def trying(what, vital=False):
    if what in task.skip:
        return False
    tell(Trying(what=what, vital=vital))
    return True
"""
_REPORT = """
trials = tuple(Trial(what=w, plan=Plan(), accepted=False, why=y) for w, y in task.skip.items())
tell(PreflightReport(plan=Plan(), trials=trials, metric="log_loss", metric_value=0.5, golden_rows=1, max_difference=0.0,
                     rss_mb=1.0, seconds=0.1, fingerprint="f", sentence="fine"))
"""


def fake(code: str) -> Preflight:
    """A preflight whose child speaks our frames and misbehaves as told."""
    return Preflight(0.1, [sys.executable, "-c", _FAKE + code])


async def test_candidates_that_kill_or_hang_the_child_are_left_out_and_named(tmp_path: Path) -> None:
    code = "if trying('plan a'): os.kill(os.getpid(), signal.SIGSEGV)\nif trying('plan b'): time.sleep(60)\n" + _REPORT
    ended = await fake(code).run(tmp_path, threads=1, deadline_s=4)
    assert isinstance(ended, PreflightReport)
    a, b = ended.trials
    assert (a.what, b.what) == ("plan a", "plan b")
    assert "signal SIGSEGV" in a.why
    assert "did not answer within 2 s" in b.why


@pytest.mark.parametrize(
    ("code", "cause", "words"),
    [
        ("trying('default plan', True); os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "signal SIGSEGV"),
        ("trying('default plan', True); time.sleep(60)", "hung", "did not answer within 1 s"),
        ("trying('default plan', True); raise ValueError('boom')", "crashed", "ValueError: boom"),
        ("os.write(1, b'\\xff' * 64); time.sleep(60)", "preflight_broken", "spoke no frame"),
        ("trying('default plan', True); sys.exit(0)", "crashed", "exit 0"),
    ],
)
async def test_a_child_that_dies_on_a_vital_step_refuses_the_release(
    tmp_path: Path, code: str, cause: str, words: str
) -> None:
    ended = await fake(code).run(tmp_path, threads=1, deadline_s=2 if cause == "hung" else 20)
    assert isinstance(ended, PreflightFailed)
    assert ended.cause == cause
    assert words in ended.sentence


async def test_a_child_that_floods_its_stderr_is_still_heard_to_the_end(tmp_path: Path) -> None:
    ended = await fake("sys.stderr.write('x' * 300_000 + chr(10) * 3); sys.stderr.flush()\n" + _REPORT).run(
        tmp_path, threads=1, deadline_s=20
    )
    assert isinstance(ended, PreflightReport)


async def test_the_deadline_holds_however_many_candidates_hang(tmp_path: Path) -> None:
    code = "\n".join(f"if trying('plan {n}'): time.sleep(60)" for n in range(9))
    ended = await fake(code).run(tmp_path, threads=1, deadline_s=2)
    assert isinstance(ended, PreflightFailed)
    assert ended.cause == "deadline"


async def test_a_repeated_preflight_keeps_its_plan_until_something_changes(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    first = await preflight(folder)
    again = await preflight(folder)
    assert isinstance(first, PreflightReport)
    assert isinstance(again, PreflightReport)
    assert (first.source, again.source) == ("search", "cache")
    assert again.plan == first.plan
    assert again.fingerprint == first.fingerprint
    assert again.sentence.startswith("kept from an earlier preflight")
    other = await QUICK.run(folder, threads=1, deadline_s=60)
    assert isinstance(other, PreflightReport)
    assert other.source == "search"
    assert other.fingerprint != first.fingerprint


async def test_a_kept_plan_does_not_hide_weights_that_were_changed_since(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    await preflight(folder)
    (folder / "model.onnx").write_bytes(graph(seed=8))
    assert (await refused(folder)).cause == "golden_mismatch"


async def test_a_hint_is_gated_like_any_plan_and_a_bad_one_costs_only_itself(tmp_path: Path) -> None:
    folder = write_release(tmp_path)
    hints = (Plan("openvino", "npu", "fp16"), Plan(precision="int8", recipe="melted"), Plan(recipe="qdq", threads=1))
    ended = await QUICK.run(folder, threads=2, deadline_s=60, hints=hints)
    assert isinstance(ended, PreflightReport)
    trials = {trial.what: trial for trial in ended.trials}
    assert not trials["openvino npu fp16 1 thread"].accepted
    assert "known are qdq" in trials["onnxruntime cpu int8 melted 1 thread"].why
    assert trials["onnxruntime cpu int8 qdq 1 thread"].metric is not None
    assert ended.trials[0].what == "onnxruntime cpu fp32 1 thread"


async def test_a_hint_that_is_the_default_ends_the_search_early(tmp_path: Path) -> None:
    ended = await QUICK.run(write_release(tmp_path), threads=2, deadline_s=60, hints=(Plan(),))
    assert isinstance(ended, PreflightReport)
    assert (ended.source, len(ended.trials)) == ("hint", 1)


async def test_a_limit_of_the_box_refuses_plans_and_says_so(tmp_path: Path) -> None:
    limits = Limits(memory_mb=1.0)
    ended = await Preflight(0.3, limits=limits).run(write_release(tmp_path), threads=1, deadline_s=60)
    assert isinstance(ended, PreflightFailed)
    assert ended.cause == "too_much_memory"
    assert "this box allows 1 MB" in ended.sentence


async def test_throughput_may_choose_streams_and_stays_within_the_threads(tmp_path: Path) -> None:
    ended = await Preflight(0.3, objective="throughput").run(image_release(tmp_path / "i"), threads=2, deadline_s=60)
    assert isinstance(ended, PreflightReport)
    assert ended.objective == "throughput"
    assert any(trial.plan.streams == 2 for trial in ended.trials)
    assert ended.plan.threads * ended.plan.streams <= 2


async def test_a_text_encoder_keeps_its_promise_and_the_stock_recipe_that_spoils_it_is_refused(tmp_path: Path) -> None:
    folder = text_release(tmp_path / "t", gates=Gates(metric="cosine", max_metric_loss=0.005))
    ended = await Preflight(0.3, exhaustive=True).run(folder, threads=2, deadline_s=170)
    assert isinstance(ended, PreflightReport)
    stock = next(trial for trial in ended.trials if trial.plan.recipe == "stock-qdq")
    assert (stock.accepted, stock.stage) == (False, "golden set")
    assert "cosine worsens by" in stock.why
    won = next(trial for trial in ended.trials if trial.what == ended.plan.name)
    assert won.stage == "won"
    assert won.metric is not None
    assert won.metric >= 0.995
