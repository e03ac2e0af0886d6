"""The probe over fake trees: what a box has is read from the kernel's files, and every obstacle is named."""

import os
import sys
from pathlib import Path

import msgspec
import pytest
from landreeve_agent.hardware.accelerators import read_accelerators
from landreeve_agent.hardware.cgroup import read_limits
from landreeve_agent.hardware.cpu import read_cpu
from landreeve_agent.hardware.inventory import Inventory, Proof, Runtime, choose_device, thread_budget
from landreeve_agent.hardware.nvml import NvmlAnswer, NvmlGpu, ask_nvml, merge
from landreeve_agent.hardware.probe import probe
from landreeve_agent.hardware.runtimes import ask, ask_runtimes

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) Ultra 7 155H
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx_vnni

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) Ultra 7 155H
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse4_2 avx avx2 fma f16c avx_vnni
"""


class Box:
    """A tree of kernel files, written as a test wants it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str, text: str) -> "Box":
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return self

    def link(self, path: str, target: str) -> "Box":
        at = self.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(target)
        return self

    def pci(self, slot: str, vendor: str, device: str, kind: str, driver: str = "") -> "Box":
        base = f"sys/bus/pci/devices/{slot}"
        self.file(f"{base}/vendor", vendor).file(f"{base}/device", device).file(f"{base}/class", kind)
        return self.link(f"{base}/driver", f"../../../../bus/pci/drivers/{driver}") if driver else self


@pytest.fixture
def box(tmp_path: Path) -> Box:
    made = Box(tmp_path)
    made.file("proc/cpuinfo", CPUINFO).file("proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
    made.file("sys/devices/system/cpu/online", "0-1\n").file("proc/self/status", "Name: x\nCpus_allowed_list:\t0-1\n")
    return made


def runtimes(*devices: str, problem: str = "") -> tuple[Runtime, ...]:
    return (Runtime(name="onnxruntime", version="1", devices=devices or ("cpu",), problem=problem),)


def inventory(box: Box, *devices: str) -> Inventory:
    return probe(box.root, lambda: runtimes(*devices), NvmlAnswer)


def proven(found: Inventory, device: str, ok: bool = True) -> Inventory:
    sentence = "" if ok else "ran on CPU instead"
    proof = Proof(runtime="openvino", device=device, target=device.upper(), ok=ok, sentence=sentence)
    return msgspec.structs.replace(found, proofs=(proof,))


def test_cpu_tells_model_instructions_and_cores_without_counting_threads_twice(box: Box) -> None:
    for n in (0, 1):
        box.file(f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list", "0-1")
    cpu = read_cpu(box.root)
    assert cpu.model == "Intel(R) Core(TM) Ultra 7 155H"
    assert cpu.isa == ("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni")
    assert (cpu.physical_cores, cpu.logical_cores, cpu.affinity) == (1, 2, 2)


def test_an_arm_board_tells_its_name_in_the_device_tree(tmp_path: Path) -> None:
    box = Box(tmp_path).file("proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm bf16\n")
    box.file("proc/device-tree/model", "Radxa ROCK 5B\0").file("sys/devices/system/cpu/online", "0-7")
    cpu = read_cpu(box.root)
    assert (cpu.model, cpu.logical_cores) == ("Radxa ROCK 5B", 8)
    assert cpu.isa == ("asimd", "asimddp", "i8mm", "bf16")


def test_an_empty_tree_is_a_box_of_one_core(tmp_path: Path) -> None:
    found = probe(tmp_path, tuple)
    assert (found.threads, found.limits.cpus, found.accelerators, found.kind) == (1, None, (), "CPU")


V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
V1 = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"


def test_v2_quota_of_an_ancestor_binds(box: Box) -> None:
    box.file("proc/self/mountinfo", V2).file("proc/self/cgroup", "0::/system.slice/app.service\n")
    box.file("sys/fs/cgroup/system.slice/app.service/cpu.max", "max 100000")
    box.file("sys/fs/cgroup/system.slice/cpu.max", "150000 100000")
    box.file("sys/fs/cgroup/system.slice/memory.max", "1073741824")
    found = inventory(box)
    assert (found.limits.cpus, found.limits.version) == (1.5, "v2")
    assert "system.slice/cpu.max" in found.limits.source
    assert found.threads == 1
    assert found.memory.usable_bytes == 1 << 30


def test_v1_quota_binds_and_minus_one_is_no_quota(box: Box) -> None:
    box.file("proc/self/mountinfo", V1).file("proc/self/cgroup", "4:cpu,cpuacct:/docker/abc\n")
    box.file("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", "-1")
    box.file("sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000")
    assert read_limits(box.root).cpus is None
    box.file("sys/fs/cgroup/cpu/docker/cpu.cfs_quota_us", "50000")
    box.file("sys/fs/cgroup/cpu/docker/cpu.cfs_period_us", "100000")
    assert read_limits(box.root).cpus == 0.5
    assert inventory(box).threads == 1


def test_a_mount_that_shows_only_the_containers_part_is_understood(box: Box) -> None:
    mount = "31 24 0:27 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    box.file("proc/self/mountinfo", mount).file("proc/self/cgroup", "4:cpu:/docker/abc\n")
    box.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000").file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert read_limits(box.root).cpus == 2.0


def test_v1_memory_without_a_limit_is_no_limit(box: Box) -> None:
    box.file("proc/self/mountinfo", "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n")
    box.file("proc/self/cgroup", "4:memory:/\n")
    box.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert inventory(box).memory.usable_bytes == 16_000_000 * 1024


def test_affinity_narrows_the_budget(box: Box) -> None:
    box.file("sys/devices/system/cpu/online", "0-15").file("proc/self/status", "Cpus_allowed_list:\t2-3,9\n")
    assert inventory(box).threads == 3
    assert thread_budget(16, 2.9) == 2


def nvidia(box: Box) -> Box:
    box.pci("0000:01:00.0", "0x10de", "0x2684", "0x030000", "nvidia").file("dev/nvidiactl", "").file("dev/nvidia0", "")
    box.file("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb\n")
    box.file("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ: 1\n")
    return box.file("dev/nvidia-uvm", "")


def test_nvidia_with_its_driver_is_usable(box: Box) -> None:
    (gpu,) = read_accelerators(nvidia(box).root)
    assert (gpu.name, gpu.driver_version, gpu.usable) == ("NVIDIA GeForce RTX 4090", "550.54.14", True)


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("nouveau", "the driver 'nouveau' is bound; install NVIDIA's driver (nvidia)"),
        ("", "no driver is bound; install NVIDIA's driver (nvidia)"),
    ],
)
def test_nvidia_without_its_driver_says_what_to_do(box: Box, driver: str, words: str) -> None:
    box.pci("0000:01:00.0", "0x10de", "0x2684", "0x030200", driver)
    (gpu,) = read_accelerators(box.root)
    assert not gpu.usable
    assert gpu.trouble == words


def test_nvidias_driver_and_library_are_compared_before_anything_opens_them(box: Box) -> None:
    nvidia(box).file("usr/lib64/libcuda.so.550.90.07", "").link("usr/lib64/libcuda.so.1", "libcuda.so.550.90.07")
    (gpu,) = read_accelerators(box.root)
    assert gpu.problem == "driver 550.54.14 and library 550.90.07 differ"


def test_cuda_needs_the_node_for_unified_memory(box: Box) -> None:
    (nvidia(box).root / "dev/nvidia-uvm").unlink()
    (gpu,) = read_accelerators(box.root)
    assert gpu.trouble == "/dev/nvidia-uvm is missing; run nvidia-modprobe -u, or pass the node to the container"


def test_what_nvml_cannot_answer_for_is_not_usable(box: Box) -> None:
    found = read_accelerators(nvidia(box).root)
    (lost,) = merge(found, NvmlAnswer(problem="NVML did not answer within 20 s"))
    assert (lost.usable, lost.problem) == (False, "NVML did not answer within 20 s")
    gpus = (NvmlGpu(pci="0000:01:00.0", name="RTX", memory_bytes=1, facts={"celsius": "40"}),)
    (told,) = merge(found, NvmlAnswer(driver="550.54.14", gpus=gpus))
    assert (told.usable, told.memory_bytes, told.facts) == (True, 1, {"celsius": "40"})


NVML = """
NVML_TEMPERATURE_GPU = 0
nvmlClocksThrottleReasonSwThermalSlowdown = 0x20
nvmlClocksThrottleReasonHwThermalSlowdown = 0x40
nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80
class NVMLError(Exception): pass
def nvmlInit(): {init}
def nvmlSystemGetDriverVersion(): return "550.54.14"
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(n): return n
def nvmlDeviceGetName(h): return b"NVIDIA L4"
def nvmlDeviceGetCudaComputeCapability(h): return (8, 9)
def nvmlDeviceGetTemperature(h, sensor): return 41
def nvmlDeviceGetUtilizationRates(h): raise NVMLError("Not Supported")
def nvmlDeviceGetMigMode(h): raise NVMLError("Not Supported")
def nvmlDeviceGetVbiosVersion(h): return "95.04"
def nvmlDeviceGetCurrentClocksThrottleReasons(h): return 0x41
class nvmlDeviceGetMemoryInfo:
    def __init__(self, h): self.total = 24152899584
class nvmlDeviceGetPciInfo:
    def __init__(self, h): self.busId = "00000000:01:00.0"
"""


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("pass", ""),
        ("raise NVMLError('Driver/library version mismatch')", "NVML: Driver/library version mismatch"),
        ("__import__('time').sleep(60)", "NVML did not answer within 1 s"),
        ("__import__('os').abort()", "NVML crashed with SIGABRT"),
    ],
)
def test_nvml_is_asked_in_a_child_that_may_fail_in_any_way(
    init: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(NVML.replace("{init}", init))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = ask_nvml(deadline_s=1 if "sleep" in init else 20)
    assert told.problem == words
    if not words:
        facts = {"compute_capability": "8.9", "celsius": "41", "slowed_by": "heat"}
        gpu = NvmlGpu(pci="0000:01:00.0", name="NVIDIA L4", memory_bytes=24152899584, firmware="95.04", facts=facts)
        assert told == NvmlAnswer(driver="550.54.14", gpus=(gpu,))


def intel_gpu(box: Box) -> Box:
    box.pci("0000:00:02.0", "0x8086", "0x7d55", "0x030000", "xe")
    (box.root / "sys/bus/pci/devices/0000:00:02.0/drm/renderD128").mkdir(parents=True)
    box.file("usr/lib/x86_64-linux-gnu/libOpenCL.so.1", "")
    return box.file("etc/OpenCL/vendors/intel.icd", "libigdrcl.so")


def test_intel_gpu_is_known_by_its_driver_and_needs_its_render_node(box: Box) -> None:
    (gpu,) = read_accelerators(intel_gpu(box).root)
    assert "/dev/dri/renderD128 is missing" in gpu.problem
    box.file("dev/dri/renderD128", "")
    (gpu,) = read_accelerators(box.root)
    assert (gpu.vendor, gpu.driver, gpu.usable) == ("Intel", "xe", True)


def test_intel_gpu_needs_opencl(box: Box) -> None:
    intel_gpu(box).file("dev/dri/renderD128", "")
    (box.root / "usr/lib/x86_64-linux-gnu/libOpenCL.so.1").unlink()
    (gpu,) = read_accelerators(box.root)
    assert gpu.trouble == "libOpenCL.so.1 is missing; install ocl-icd-libopencl1 and intel-opencl-icd"


def test_amd_gpu_tells_its_memory_and_needs_kfd(box: Box) -> None:
    box.pci("0000:03:00.0", "0x1002", "0x744c", "0x030000", "amdgpu").file("dev/dri/renderD129", "")
    box.file("sys/bus/pci/devices/0000:03:00.0/mem_info_vram_total", "25753026560")
    (box.root / "sys/bus/pci/devices/0000:03:00.0/drm/renderD129").mkdir(parents=True)
    (gpu,) = read_accelerators(box.root)
    assert (gpu.vendor, gpu.memory_bytes, gpu.problem) == ("AMD", 25753026560, "/dev/kfd is missing")
    box.file("dev/kfd", "")
    (gpu,) = read_accelerators(box.root)
    assert gpu.usable


def test_a_gpu_nobody_can_compute_with_is_left_out(box: Box) -> None:
    box.pci("0000:c1:00.0", "0x1a03", "0x2000", "0x030000", "ast")  # a server's remote console
    assert read_accelerators(box.root) == ()


def libraries(box: Box) -> Box:
    for name in ("libze_loader.so.1", "libze_intel_npu.so.1", "libxrt_coreutil.so.2", "libteflon.so"):
        box.file(f"usr/lib/{name}", "")
    return box


@pytest.mark.parametrize(
    ("driver", "device", "name"),
    [
        ("intel_vpu", "0x643e", "Intel NPU (Lunar Lake)"),
        ("amdxdna", "0x1502", "AMD XDNA NPU"),
        ("rocket", "", "Rockchip NPU"),
    ],
)
def test_the_same_node_is_another_npu_by_its_driver(box: Box, driver: str, device: str, name: str) -> None:
    box.file("sys/devices/npu/device", device).link("sys/devices/npu/driver", f"../drivers/{driver}")
    box.link("sys/class/accel/accel0/device", "../../../devices/npu").file("dev/accel/accel0", "")
    libraries(box)
    (npu,) = read_accelerators(box.root)
    assert (npu.kind, npu.name, npu.usable) == ("npu", name, True)


def test_an_unknown_accel_driver_is_not_called_an_npu(box: Box) -> None:
    box.file("sys/devices/x/device", "1").link("sys/devices/x/driver", "../drivers/habanalabs")
    box.link("sys/class/accel/accel0/device", "../../../devices/x")
    assert read_accelerators(box.root) == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_a_node_without_permission_names_the_group(box: Box) -> None:
    box.file("sys/devices/npu/device", "0x643e").link("sys/devices/npu/driver", "../drivers/intel_vpu")
    box.link("sys/class/accel/accel0/device", "../../../devices/npu").file("dev/accel/accel0", "")
    (box.root / "dev/accel/accel0").chmod(0)
    (npu,) = read_accelerators(box.root)
    assert npu.trouble == "no permission for /dev/accel/accel0; add the service's user to the group 'render'"


def npu_box(box: Box) -> Box:
    box.file("sys/devices/npu/device", "0x643e").link("sys/devices/npu/driver", "../drivers/intel_vpu")
    return libraries(box).link("sys/class/accel/accel0/device", "../../../devices/npu")


def test_a_wanted_device_gives_way_to_the_cpu_with_the_reason(box: Box) -> None:
    nothing = choose_device("npu", inventory(box))
    assert (nothing.used, nothing.reason) == ("cpu", "no NPU found in this box")
    closed = choose_device("npu", inventory(npu_box(box)))
    assert "Intel NPU (Lunar Lake): /dev/accel/accel0 is missing" in closed.reason
    box.file("dev/accel/accel0", "")
    unknown = choose_device("npu", probe(box.root, lambda: runtimes("cpu", problem="libze_intel_npu.so.1 is missing")))
    assert "is usable, but no installed runtime can drive it (onnxruntime: libze_intel_npu" in unknown.reason
    listed = inventory(box, "cpu", "npu")
    assert choose_device("npu", listed).reason == "Intel NPU (Lunar Lake) has not been proven yet"
    refused = choose_device("npu", proven(listed, "npu", ok=False))
    assert (refused.used, refused.reason) == ("cpu", "openvino: ran on CPU instead")
    used = choose_device("npu", proven(listed, "npu"))
    assert (used.used, used.reason) == ("npu", "")


def test_auto_takes_what_is_proven_and_never_complains(box: Box) -> None:
    npu_box(box).file("dev/accel/accel0", "")
    listed = inventory(box, "cpu", "npu")
    assert choose_device("auto", listed).used == "cpu"
    assert choose_device("auto", proven(listed, "npu")).used == "npu"
    assert choose_device("cpu", proven(listed, "npu")).used == "cpu"
    assert (listed.kind, proven(listed, "npu").kind) == ("CPU", "NPU")


def test_a_proof_counts_more_than_what_the_files_say(box: Box) -> None:
    assert choose_device("gpu", proven(inventory(box), "gpu")).used == "gpu"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import time; time.sleep(60)", "listing its devices did not answer within 0.5 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with SIGSEGV"),
        ("raise OSError('libOpenCL.so.1: cannot open shared object file')", "libOpenCL.so.1: cannot open"),
        ("print('hello')", "its devices cannot be read"),
    ],
)
def test_a_broken_runtime_costs_a_line_and_nothing_else(code: str, words: str) -> None:
    found = ask("onnxruntime", [sys.executable, "-c", code], 0.5)
    assert (found.devices, found.name) == ((), "onnxruntime")
    assert words in found.problem


def test_a_runtime_that_is_not_installed_says_so() -> None:
    assert ask("no-such-runtime", [], 1).problem == "not installed"


def test_this_box_is_probed_for_real() -> None:
    found = probe(ask=lambda: ask_runtimes(("onnxruntime",)))
    assert 1 <= found.threads <= found.cpu.logical_cores
    assert found.memory.total_bytes > 1 << 28
    assert {r.name: "cpu" in r.devices for r in found.runtimes}["onnxruntime"]
    assert found.text.startswith(found.cpu.model)
