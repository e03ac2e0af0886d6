"""A name for what decides which plan wins on a box: equal boxes share it, and it changes when a driver, a runtime or a
limit changes."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from landreeve_agent.hardware.cpu import read_cpu
from landreeve_agent.tuning.recipes import KINDS

RUNTIMES = ("onnxruntime", "openvino", "nncf")
# What people set to hold the runtimes back; each changes what is fast without changing the processor.
CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "OV_CPU_MAX_ISA")
_SEARCH = 3  # changes when plans are made or judged in another way
_ABOVE_SSE = ("avx", "f16c", "fma", "amx")
_CAPPED: Sequence[tuple[str, frozenset[str]]] = (
    ("SSE41", frozenset()),
    ("AVX", frozenset({"avx"})),
    ("AVX2", frozenset({"avx", "f16c", "fma", "avx2"})),
    ("AVX2_VNNI", frozenset({"avx", "f16c", "fma", "avx2", "avx_vnni"})),
    ("AVX512_CORE", frozenset({"avx", "f16c", "fma", "avx2", "avx512f"})),
    ("AVX512_CORE_VNNI", frozenset({"avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni"})),
    ("AVX512_CORE_BF16", frozenset({"avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16"})),
)


def effective_isa(flags: Iterable[str], environ: Mapping[str, str]) -> frozenset[str]:
    """The instruction sets OpenVINO may use: the processor's, less what ``ONEDNN_MAX_CPU_ISA`` holds back.

    Source: https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html

    >>> sorted(effective_isa(["avx2", "avx512f", "avx512_bf16", "neon"], {"ONEDNN_MAX_CPU_ISA": "AVX2"}))
    ['avx2', 'neon']
    """
    found = frozenset(flags)
    cap = (environ.get("ONEDNN_MAX_CPU_ISA") or environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    allowed = dict(_CAPPED).get(cap)
    if allowed is None:
        return found
    return frozenset(flag for flag in found if flag in allowed or not flag.startswith(_ABOVE_SSE))


def box_class(root: Path, threads: int, devices: Sequence[str], environ: Mapping[str, str]) -> str:
    """16 hex digits of processor, instruction sets, caps, threads, devices, runtimes and the search itself."""
    cpu = read_cpu(root)
    parts = [cpu.model, cpu.architecture, *sorted(cpu.isa), f"{threads} threads", *devices, f"search {_SEARCH}"]
    parts += [f"{name}={environ[name]}" for name in CAPS if environ.get(name)]
    parts += [f"{name} {version_of(name)}" for name in RUNTIMES]
    parts += [*KINDS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def version_of(package: str) -> str:
    """The installed version, or ``-``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def this_environment() -> Mapping[str, str]:
    """The process's own environment."""
    return os.environ
