"""``landreeve hw``: what is there, what works, how fast; for people and for programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from landreeve_agent.hardware.bench import Figures, Job, jobs, measure
from landreeve_agent.hardware.inventory import Accelerator, Cpu, Inventory, Limits, Memory, Proof, Runtime

GPU = Accelerator(
    id="pci:1", kind="gpu", vendor="Intel", name="Arc A770", driver="xe", problem="libOpenCL.so.1 is missing",
    fix="install ocl-icd-libopencl1",
)  # fmt: skip
# Nothing is asked or run with an override that has runtimes and proofs, so these tests need no runtime at all.
TOLD = Inventory(
    cpu=Cpu(model="a cpu", architecture="x86_64", physical_cores=4, logical_cores=8, affinity=2, isa=("avx2",)),
    limits=Limits(cpus=2.0, source="/sys/fs/cgroup/cpu.max"),
    memory=Memory(total_bytes=8_000_000_000, available_bytes=4_000_000_000, usable_bytes=8_000_000_000),
    threads=2,
    accelerators=(GPU,),
    runtimes=(Runtime(name="openvino", version="1", devices=("cpu",), providers=("CPU",)),),
    proofs=(
        Proof(runtime="openvino", device="cpu", target="CPU", ok=True, latency_us=60.0),
        Proof(runtime="torch", device="cpu", target="cpu", ok=False, cause="crashed", sentence="crashed with SIGSEGV"),
    ),
)


def cli(state: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "landreeve_agent", "--state", str(state), "hw", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "NO_COLOR": "1", **environ},
    )


@pytest.fixture
def override(tmp_path: Path) -> str:
    file = tmp_path / "override.json"
    file.write_bytes(msgspec.json.encode(TOLD))
    return str(file)


def test_the_list_says_what_is_usable_what_is_proven_and_what_to_do(tmp_path: Path, override: str) -> None:
    done = cli(tmp_path / "state", "list", LANDREEVE_HARDWARE__OVERRIDE=override)
    assert done.returncode == 0, done.stderr
    assert "a cpu, 4 cores, 2 threads for inference, 8.0 GB, Arc A770" in done.stdout
    assert "may use 2 of 8 threads, a quota of 2 CPUs (/sys/fs/cgroup/cpu.max)" in done.stdout
    words = " ".join(done.stdout.split())
    assert "Arc A770 gpu xe no not tried libOpenCL.so.1 is missing; install ocl-icd-libopencl1" in words
    assert "torch cpu cpu crashed" in words
    assert f"partly told by {override}" in words


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_programs_get_the_whole_inventory(form: str, tmp_path: Path, override: str) -> None:
    done = cli(tmp_path / "state", "list", "-o", form, LANDREEVE_HARDWARE__OVERRIDE=override)
    if form == "json":
        found = json.loads(done.stdout)
        assert (found["kind"], found["threads"], found["override"]) == ("CPU", 2, override)
        assert found["accelerators"][0]["fix"] == "install ocl-icd-libopencl1"
    else:
        assert '"threads": 2' in done.stdout


def test_a_bad_override_is_refused_with_its_reason(tmp_path: Path) -> None:
    done = cli(tmp_path / "state", "list", LANDREEVE_HARDWARE__OVERRIDE=str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert "hardware.override" in done.stderr
    assert "Traceback" not in done.stderr


def test_proving_is_refused_while_the_inventory_is_made_up(tmp_path: Path, override: str) -> None:
    done = cli(tmp_path / "state", "prove", LANDREEVE_HARDWARE__OVERRIDE=override)
    assert done.returncode == 6
    assert "unset it to prove the real devices" in done.stderr


def test_what_is_proven_on_this_box_is_not_run_twice(tmp_path: Path) -> None:
    done = cli(tmp_path / "state", "prove", "-o", "json")
    proofs = {proof["runtime"]: proof for proof in json.loads(done.stdout)}
    assert proofs["onnxruntime"]["ok"]
    assert done.returncode == (0 if all(proof["ok"] for proof in proofs.values()) else 3)
    again = json.loads(cli(tmp_path / "state", "prove", "-o", "json").stdout)
    assert [proof["at"] for proof in again if proof["ok"]] == [p["at"] for p in proofs.values() if p["ok"]]


def test_a_bench_measures_memory_and_every_proven_device() -> None:
    found = [(job.what, job.target, job.threads) for job in jobs(TOLD)]
    assert found == [("memory", "copy", 1), ("memory", "copy", 2), ("openvino", "CPU", 1), ("openvino", "CPU", 2)]


def test_a_real_figure_is_measured_in_a_child() -> None:
    done = measure(Job(what="onnxruntime", device="cpu", target="CPUExecutionProvider", threads=1))
    assert done.problem == ""
    assert (done.latency_us or 0) > 0
    assert (done.gflops or 0) > 0
    assert (measure(Job(what="memory", device="cpu", target="copy", threads=1)).gbytes_s or 0) > 0


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("import time; time.sleep(60)", "did not answer within 1 s"),
        ("print('hello')", "its figures cannot be read"),
        (f"print({msgspec.json.encode(Figures(error='out of memory')).decode()!r})", "out of memory"),
    ],
)
def test_a_device_that_fails_while_measured_costs_its_line(program: str, words: str) -> None:
    job = Job(what="openvino", device="gpu", target="GPU", threads=1)
    done = measure(job, lambda _: [sys.executable, "-c", program], deadline_s=1 if "sleep" in program else 20)
    assert (done.what, done.gflops) == ("openvino", None)
    assert words in done.problem
