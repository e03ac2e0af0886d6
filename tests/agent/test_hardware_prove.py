"""Proving devices by running on them: whatever a runtime's child does, it is named, remembered, and costs no more."""

import contextlib
import itertools
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from landreeve_agent.commands.checks import examine
from landreeve_agent.config import StateFolder
from landreeve_agent.hardware import tiny
from landreeve_agent.hardware.graphs import MATMUL, TINY, matmul_graph, tiny_graph
from landreeve_agent.hardware.inventory import Accelerator, Cpu, Inventory, Limits, Memory, Proof, Runtime
from landreeve_agent.hardware.prove import Candidate, Command, Ran, candidates, judge, key_of, prove, recall
from landreeve_agent.hardware.survey import Survey

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GPU = Accelerator(id="pci:0000:00:02.0", kind="gpu", vendor="Intel", name="Arc", driver="xe", usable=True)


def box(*targets: str, version: str = "2026.4", gpu: Accelerator = GPU) -> Inventory:
    runtime = Runtime(name="openvino", version=version, devices=("gpu",), providers=targets or ("GPU",))
    return Inventory(
        cpu=Cpu(model="a cpu", architecture="x86_64", physical_cores=2, logical_cores=2, affinity=2),
        limits=Limits(), memory=Memory(total_bytes=1, available_bytes=1, usable_bytes=1), threads=2,
        kernel="6.12", accelerators=(gpu,), runtimes=(runtime,),
    )  # fmt: skip


class Children:
    """Starts Python with a program in place of the real child, and counts."""

    def __init__(self, *programs: str) -> None:
        self.programs = list(programs)
        self.started = 0

    def __call__(self, candidate: Candidate) -> list[str]:
        self.started += 1
        program = self.programs.pop(0) if len(self.programs) > 1 else self.programs[0]
        return [sys.executable, "-c", program]


def saying(**ran: object) -> str:
    told = msgspec.json.encode(msgspec.convert(ran, Ran)).decode()
    return f"print({told!r})"


GOOD = saying(where=["GPU.0"], difference=0.001, latency_us=12.5)


def try_one(command: Command, memory: Path, inventory: Inventory | None = None, deadline_s: float = 20.0) -> Proof:
    (proof,) = prove(inventory or box(), memory, now=lambda: NOW, command=command, deadline_s=deadline_s)
    return proof


def test_a_device_that_answers_right_and_says_so_is_proven(tmp_path: Path) -> None:
    proof = try_one(Children(GOOD), tmp_path / "m.json")
    assert (proof.ok, proof.cause, proof.latency_us, proof.at) == (True, "", 12.5, "2026-03-01T12:00:00+00:00")


@pytest.mark.parametrize(
    ("program", "cause", "words"),
    [
        ("import time; time.sleep(60)", "hung", "did not answer within 0.5 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "crashed with SIGSEGV"),
        ("raise SystemExit('libze_intel_npu.so.1: not found')", "failed", "ended with 1: libze_intel_npu.so.1"),
        ("print('Welcome to the driver')", "unreadable", "its answer cannot be read"),
        (saying(error="no kernel image is available"), "failed", "no kernel image is available"),
        (saying(where=["GPU.0"], difference=0.4), "wrong_result", "answers wrongly, by 40.0% of the largest value"),
        (saying(where=["GPU.0"], difference=1e9), "wrong_result", "answers wrongly, by far"),
        (saying(where=["CPU"], difference=0.0), "silent_fallback", "it ran on CPU instead"),
        (saying(where=["GPU.0", "CPU"], difference=0.0), "silent_fallback", "it ran on CPU instead"),
        (saying(where=[], difference=0.0), "silent_fallback", "does not say where"),
    ],
)
def test_every_way_to_fail_has_its_word(program: str, cause: str, words: str, tmp_path: Path) -> None:
    proof = try_one(Children(program), tmp_path / "m.json", deadline_s=0.5 if cause == "hung" else 20.0)
    assert (proof.ok, proof.cause) == (False, cause)
    assert words in proof.sentence


def test_a_hung_child_takes_what_it_started_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "grandchild"
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    try_one(Children(program), tmp_path / "m.json", deadline_s=2.0)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(mark.read_text())).wait(5)


def test_what_is_proven_is_not_run_again(tmp_path: Path) -> None:
    children = Children(GOOD)
    first = try_one(children, tmp_path / "m.json")
    assert try_one(children, tmp_path / "m.json") == first
    assert children.started == 1
    assert recall(box(), tmp_path / "m.json") == (first,)


def test_a_failure_is_tried_three_times_in_all_and_then_remembered(tmp_path: Path) -> None:
    children = Children("raise SystemExit(1)")
    attempts = [try_one(children, tmp_path / "m.json").attempts for _ in range(5)]
    assert attempts == [1, 2, 3, 3, 3]
    assert children.started == 3


def test_each_further_try_has_twice_the_time(tmp_path: Path) -> None:
    slow = f"import time; time.sleep(1.5)\n{GOOD}"
    proofs = [try_one(Children(slow), tmp_path / "m.json", deadline_s=1.0) for _ in range(3)]
    assert proofs[0].cause == "hung"
    assert proofs[-1].ok


@pytest.mark.parametrize(
    "changed",
    [
        box(version="2026.5"),
        box(gpu=msgspec.structs.replace(GPU, driver_version="2")),
        box(gpu=msgspec.structs.replace(GPU, firmware="70.2")),
        box(gpu=msgspec.structs.replace(GPU, library="24.1")),
        box(gpu=msgspec.structs.replace(GPU, driver="i915")),
        msgspec.structs.replace(box(), kernel="6.13"),
    ],
)
def test_another_driver_runtime_or_kernel_is_tried_anew(changed: Inventory, tmp_path: Path) -> None:
    children = Children("raise SystemExit(1)")
    for _ in range(4):
        try_one(children, tmp_path / "m.json")
    assert try_one(Children(GOOD), tmp_path / "m.json", changed).ok
    assert not try_one(children, tmp_path / "m.json").ok
    assert children.started == 3


def test_figures_that_always_move_make_no_new_key() -> None:
    busy = msgspec.structs.replace(GPU, facts={"npu_busy_time_us": "1"})
    candidate = Candidate("openvino", "gpu", "GPU")
    assert key_of(candidate, box()) == key_of(candidate, box(gpu=busy))


def test_asking_again_forgets_what_is_remembered(tmp_path: Path) -> None:
    children = Children("raise SystemExit(1)", GOOD)
    assert not try_one(children, tmp_path / "m.json").ok
    (proof,) = prove(box(), tmp_path / "m.json", again=lambda c: c.device == "gpu", command=children)
    assert (proof.ok, proof.attempts) == (True, 1)


def test_a_device_that_takes_the_box_down_is_known_after_the_restart(tmp_path: Path) -> None:
    """The note that it is being tried is on the disk before the child starts."""
    seen = tmp_path / "seen"
    program = f"import shutil; shutil.copy({str(tmp_path / 'm.json')!r}, {str(seen)!r})"
    try_one(Children(program), tmp_path / "m.json")
    (note,) = recall(box(), seen)
    assert (note.ok, note.cause, note.attempts) == (False, "interrupted", 1)


def test_being_stopped_is_no_failure_of_the_device(tmp_path: Path) -> None:
    asked = iter([False, False, True, True, True, True])
    hanging = Children("import time; time.sleep(60)")
    assert prove(box(), tmp_path / "m.json", command=hanging, stop=lambda: next(asked)) == ()
    assert recall(box(), tmp_path / "m.json") == ()


def test_one_bad_device_hides_no_other(tmp_path: Path) -> None:
    children = Children("import os; os.abort()", saying(where=["GPU.1"]))
    proofs = prove(box("GPU.0", "GPU.1"), tmp_path / "m.json", command=children)
    assert [(p.target, p.ok) for p in proofs] == [("GPU.0", False), ("GPU.1", True)]


@pytest.mark.parametrize("text", ["", "{", '{"version": 99}', '{"proofs": 1}'])
def test_a_damaged_memory_is_a_box_never_proven(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    assert try_one(Children(GOOD), tmp_path / "m.json").ok


def test_a_memory_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    assert try_one(Children(GOOD), tmp_path / "missing" / "m.json").ok


def test_only_devices_of_this_box_are_candidates() -> None:
    runtimes = (
        Runtime(name="onnxruntime", providers=("AzureExecutionProvider", "CUDAExecutionProvider")),
        Runtime(name="openvino", providers=("CPU", "GPU.1")),
        Runtime(name="torch", providers=("cpu", "cuda:0")),
    )
    found = candidates(msgspec.structs.replace(box(), runtimes=runtimes))
    assert [(c.runtime, c.target, c.device) for c in found] == [
        ("onnxruntime", "CUDAExecutionProvider", "gpu"), ("openvino", "CPU", "cpu"), ("openvino", "GPU.1", "gpu"),
        ("torch", "cpu", "cpu"), ("torch", "cuda:0", "gpu"),
    ]  # fmt: skip


def test_another_device_of_the_same_kind_is_not_the_one_meant() -> None:
    assert judge(Candidate("openvino", "gpu", "GPU.1"), Ran(where=("GPU.0",)))[0] == "silent_fallback"
    assert judge(Candidate("openvino", "gpu", "GPU"), Ran(where=("GPU.0",)))[0] == ""


def test_the_processor_must_be_more_exact_than_an_npu() -> None:
    ran = Ran(where=("CPU", "NPU")[:1], difference=0.03)
    assert judge(Candidate("openvino", "cpu", "CPU"), ran)[0] == "wrong_result"
    assert judge(Candidate("openvino", "npu", "NPU"), Ran(where=("NPU",), difference=0.03))[0] == ""


def test_nothing_like_a_number_is_a_right_answer() -> None:
    wanted = tiny.answer(tiny.example(0))
    assert tiny.difference(np.full_like(wanted, np.nan), wanted) == float("inf")
    assert tiny.difference(wanted[:, :2], wanted) == float("inf")
    assert tiny.difference(wanted, wanted) == 0


def test_answers_of_other_inputs_are_told_apart() -> None:
    """A device that returns its last answer must not pass."""
    answers = [tiny.answer(tiny.example(n)) for n in range(3)]
    assert min(tiny.difference(a, b) for a, b in itertools.permutations(answers, 2)) > 0.2


def test_the_shipped_graphs_are_what_their_script_makes() -> None:
    import onnx

    for path, made in ((TINY, tiny_graph()), (MATMUL, matmul_graph())):
        assert onnx.load_model_from_string(path.read_bytes()) == onnx.load_model_from_string(made)


@pytest.mark.parametrize(
    ("runtime", "target"), [("onnxruntime", "CPUExecutionProvider"), ("openvino", "CPU"), ("torch", "cpu")]
)
def test_the_installed_runtimes_are_proven_for_real(runtime: str, target: str, tmp_path: Path) -> None:
    found = msgspec.structs.replace(box(), runtimes=(Runtime(name=runtime, version="1", providers=(target,)),))
    (proof,) = prove(found, tmp_path / "m.json")
    assert (proof.ok, proof.cause) == (True, "")
    assert (proof.latency_us or 0) > 0


def test_a_provider_that_is_not_there_is_no_silent_cpu(tmp_path: Path) -> None:
    """onnxruntime takes the CPU with a warning when CUDA is asked for and missing."""
    runtime = Runtime(name="onnxruntime", version="1", providers=("CUDAExecutionProvider",))
    (proof,) = prove(msgspec.structs.replace(box(), runtimes=(runtime,)), tmp_path / "m.json")
    assert not proof.ok
    assert proof.cause in {"silent_fallback", "failed"}


def test_the_doctor_names_what_did_not_work_and_how_to_try_again(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.prepare()
    runtime = Runtime(name="openvino", version="1", devices=("cpu",), providers=("CPU",))
    survey = Survey(
        state.hardware, ask=lambda names, *, stop: (runtime,), command=Children("import os; os.abort()")
    )  # fmt: skip
    assert [proof.cause for proof in survey.study().proofs] == ["crashed"]
    (line,) = [check for check in examine(state, {}) if check.check == "openvino on CPU"]
    assert (line.state, line.fact) == ("warn", "crashed: crashed with SIGABRT")
    assert line.fix == "mend it, then: landreeve hw prove"
