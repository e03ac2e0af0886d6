"""An environment of its own for each peer, under build/peers/NAME, made once from pinned requirements.

It is made again only when its requirements or its Python change. Nothing of a peer ever enters our own environment.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[2] / "build" / "peers"
INSTALL_S = 900

# Triton's stub embeds the interpreter: the shared libpython that the linker finds must be of the very same release
# as the Python whose standard library it then reads.
_SAME_LIBPYTHON = """
import ctypes, sys
name = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"
found = ctypes.CDLL(name)
found.Py_GetVersion.restype = ctypes.c_char_p
sys.exit(found.Py_GetVersion().decode().split()[0] != sys.version.split()[0])
"""


class PeerUnavailableError(Exception):
    """This peer cannot run on this machine; the sentence says why and what to do."""


def prepare(name: str) -> Path:
    """The Python of the peer's environment, made now if need be. Raises `PeerUnavailableError`."""
    requirements = HERE / name / "requirements.txt"
    base = _embeddable() if name == "pytriton" else Path(sys.executable)
    folder = BUILD / name
    python, stamp = folder / "bin" / "python", folder / "made-from"
    wanted = hashlib.sha256(requirements.read_bytes() + str((base, folder)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return python
    print(f"installing {name} into {folder} …", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run(name, [str(base), "-m", "venv", "--without-pip", str(folder)])
    # Our own pip fills it: Debian's Python may have no ensurepip.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "-r", str(requirements)]
    _run(name, pip)
    stamp.write_text(wanted)
    return python


def _run(name: str, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        raise PeerUnavailableError(f"{name}: {command[0]} took more than {INSTALL_S} s; try again") from None
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PeerUnavailableError(f"{name}: cannot be installed: {words[-1] if words else 'no reason given'}")


def _embeddable() -> Path:
    """A Python whose shared library is installed in the same release, as Triton's Python backend needs it."""
    for found in (Path("/usr/bin/python3"), Path(sys.base_prefix) / "bin" / "python3"):
        if (
            found.exists()
            and subprocess.run([found, "-c", _SAME_LIBPYTHON], capture_output=True, check=False).returncode == 0
        ):
            return found
    raise PeerUnavailableError(
        "pytriton: no Python with a shared libpython of its own release; Debian: apt-get install python3 libpython3-dev"
    )
