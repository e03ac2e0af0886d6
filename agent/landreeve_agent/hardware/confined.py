"""How our child programs begin: they end with their parent, yield to everybody, and keep their answer apart."""

import os
import resource

import msgspec

from landreeve_agent.serving.deathsig import die_with_parent, prefer_for_oom

_MAX_FILE_BYTES = 256 * 1024**2


def begin(parent: int) -> int:
    """Confine this process; the descriptor its answer goes to, because libraries greet on standard output."""
    die_with_parent(parent)
    prefer_for_oom()
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a driver's segfault is expected here and must not fill the disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
    out = os.dup(1)
    os.dup2(2, 1)
    return out


def answer(out: int, message: msgspec.Struct) -> None:
    """Write the answer."""
    os.write(out, msgspec.json.encode(message))
