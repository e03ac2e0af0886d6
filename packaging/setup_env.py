"""Make the virtual environment and what stands beside it, saying what is done and how long it took.

Run by the machine's own Python (3.11 or newer) with nothing installed:

    python3 packaging/setup_env.py run     agent, hub and trainer
    python3 packaging/setup_env.py test    the same and the tools of the tests, with a browser

Nothing is done twice: a stamp in the environment holds the digest of what it was made from, so a second call
needs no network. A box without an NVIDIA GPU never gets the CUDA build of torch.
"""

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
EXTRAS = {"run": "agent,openvino,hub,train", "test": "agent,openvino,hub,train,dev"}
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else "run"
    if wanted not in EXTRAS:
        return complain(f"unknown set {wanted!r}: use one of {', '.join(EXTRAS)}")
    if sys.version_info < (3, 11):  # noqa: UP036  (this file runs before anything is checked)
        return complain(
            f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. "
            "Name another with: make PYTHON=/path/to/python3 …"
        )
    system_packages(wanted)
    if stamp_holds(wanted):
        return 0
    try:
        make_venv()
        install_torch()
        step(
            f"installing Landreeve with [{EXTRAS[wanted]}]",
            [pip(), "install", "-q", "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}[{EXTRAS[wanted]}]"],
        )
    except subprocess.CalledProcessError as error:
        return complain(
            f"this step failed with exit code {error.returncode} (its own words are above).\n"
            "If the machine has no way to a Python package index, run the same command once where it has one."
        )
    stamp(wanted).write_text(digest(), encoding="ascii")
    return 0


def make_venv() -> None:
    if not (VENV / "bin" / "python").exists():
        step("making the virtual environment .venv", [sys.executable, "-m", "venv", str(VENV)])


def install_torch() -> None:
    """Take the pinned torch where pip finds a CPU build; elsewhere ask PyTorch's own CPU index."""
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    if installed("torch") or has_nvidia():
        return
    command = [pip(), "install", "-q", pinned]
    if brings_cuda(pinned):
        command += ["--index-url", TORCH_CPU_INDEX, "--extra-index-url", "https://pypi.org/simple"]
        command[3] = f"{pinned}+cpu"
    step(f"installing {pinned}, the CPU build (no NVIDIA GPU here)", command)


def brings_cuda(pinned: str) -> bool:
    """Whether the index pip uses would give the CUDA build of that requirement."""
    asked = subprocess.run(
        [pip(), "install", "-q", "--dry-run", "--no-deps", "--ignore-installed", "--report", "-", pinned],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode:
        return True
    found = json.loads(asked.stdout)["install"][0]["metadata"]
    needs = " ".join(found.get("requires_dist", []))
    return not found["version"].endswith("+cpu") and ("nvidia" in needs or "cuda" in needs)


def has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def installed(package: str) -> bool:
    return any((VENV / "lib").glob(f"python3*/site-packages/{package}/__init__.py"))


def system_packages(wanted: str) -> None:
    """mosquitto for the hub (else the NATS wheel serves), Chromium for the browser tests."""
    missing = [] if shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists() else ["mosquitto"]
    if wanted == "test" and not (shutil.which("chromium") or shutil.which("chromium-browser")):
        missing.append("chromium")
    if not missing:
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # Debian's package would start its own broker on port 1883; the hub runs its own as a child.
        commands = [
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
        ]
        for command in commands:
            done = subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=False)
            say(f"{' '.join(command)}: {'done' if done.returncode == 0 else f'failed ({done.returncode})'}")
        return
    how = f"sudo apt-get install {' '.join(missing)}"
    for name in missing:
        use = "the hub runs nats-server instead" if name == "mosquitto" else "the browser tests cannot run"
        say(f"{name} is not installed: {use}. To have it: {how}")


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
    say(f"{what} …")
    started = time.monotonic()
    environ = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # Through the interpreter: a console script's first line breaks on a path with spaces.
    if command[0] == pip():
        command = [str(VENV / "bin" / "python"), "-m", "pip", *command[1:]]
    subprocess.run(command, check=True, env=environ)
    say(f"  done in {time.monotonic() - started:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def complain(text: str) -> int:
    say(f"error: {text}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
