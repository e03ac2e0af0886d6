"""A device in a process of its own that is killed, or runs out of disk, at the n-th touch of its trust folder.

python trust_child.py kill|full FOLDER: ``FOLDER`` holds ``trust`` and the documents ``0.json``, ``1.json`` and
``2.json``, of which the trust folder has seen the first two. Writes one line of JSON for each n that was tried.
"""

import json
import os
import resource
import shutil
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from landreeve.trust.verdict import Rejected
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.codec import decode
from landreeve.wire.messages import SignedDesired

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOUCHES = {"open", "os.rename", "os.symlink", "os.remove", "os.rmdir", "os.mkdir"}


def sees(folder: Path, number: int) -> str:
    """The verdict of a new verifier on one of the documents."""
    signed = decode((folder / f"{number}.json").read_bytes(), SignedDesired)
    verdict = DesiredVerifier(folder / "trust", "d-1", NOW).verify(signed, NOW)
    return verdict.cause.value if isinstance(verdict, Rejected) else "believed"


def die_at(n: int, trust: Path) -> None:
    """End this process, as kill -9 does, when it touches the trust folder for the n-th time."""
    left = n

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in TOUCHES and str(arguments[0]).startswith(str(trust)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fill_at(size: int, _trust: Path) -> None:
    """Let the kernel refuse every file that grows past ``size`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def main(what: str, folder: Path) -> None:
    """Try every n, each on a fresh copy of the trust folder."""
    kept, trust = folder / "kept", folder / "trust"
    trust.rename(kept)
    for n in range(1, 1000, 3) if what == "kill" else range(0, 6000, 500):
        shutil.rmtree(trust, ignore_errors=True)
        shutil.copytree(kept, trust, symlinks=True)
        child = os.fork()
        if child == 0:
            (die_at if what == "kill" else fill_at)(n, trust)
            os._exit(0 if sees(folder, 2) == "believed" else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        after = [sees(folder, number) for number in (0, 1, 2, 1)]
        left = len(list((trust / "caches").iterdir()))
        sys.stdout.write(json.dumps({"n": n, "code": code, "after": after, "left": left}) + "\n")
        if code == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
