"""Which inference runtimes work here, each asked in a child process of its own, with a deadline.

A broken driver makes a runtime hang or crash while it merely lists its devices. In a child it costs a line in the
inventory; in the supervisor it would cost the site. One child for each, so one bad runtime hides no other.
"""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

import msgspec

from landreeve_agent.hardware.inventory import Runtime

DEADLINE_S = 30.0
NAMES = ("onnxruntime", "openvino")
AskRuntimes = Callable[[], tuple[Runtime, ...]]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a child prints."""

    devices: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    problem: str = ""


def ask_runtimes(deadline_s: float = DEADLINE_S) -> tuple[Runtime, ...]:
    """Every known runtime; one that is not installed says so in ``problem``."""
    with ThreadPoolExecutor(len(NAMES)) as threads:
        return tuple(threads.map(lambda name: ask(name, _command(name), deadline_s), NAMES))


def _command(name: str) -> list[str]:
    return [sys.executable, "-m", "landreeve_agent.hardware.runtimes_child", name]


def ask(name: str, command: list[str], deadline_s: float) -> Runtime:
    """One runtime, asked by a command that prints an `Answer`."""
    try:
        installed = version(name)
    except PackageNotFoundError:
        return Runtime(name=name, problem="not installed")
    try:
        done = subprocess.run(command, capture_output=True, timeout=deadline_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Runtime(name=name, version=installed, problem=f"listing its devices hung for {deadline_s:g} s")
    if done.returncode != 0:
        words = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1][:200]
        return Runtime(
            name=name, version=installed, problem=f"listing its devices ended with {done.returncode}: {words}"
        )
    try:
        answer = msgspec.json.decode(done.stdout, type=Answer)
    except msgspec.DecodeError as error:
        return Runtime(name=name, version=installed, problem=f"its devices cannot be read: {error}")
    return Runtime(
        name=name, version=installed, devices=answer.devices, providers=answer.providers, problem=answer.problem
    )
