"""A hub that is killed at the n-th touch of its state folder while it replaces a key.

python keys_child.py FOLDER NAME STEP: ``FOLDER/hub`` holds keys and metadata. Writes a line of JSON for each n tried.
"""

import json
import os
import shutil
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from landreeve_hub.signing import keys
from landreeve_hub.signing.drill import follow
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.signing.keyfolder import KeyFolder
from landreeve_hub.signing.roots import REPOSITORIES, newest_root, root_versions

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir"}


def die_at(n: int, state: Path) -> None:
    """End this process, as kill -9 does, when it touches the state folder for the n-th time."""
    left = n

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in TOUCHES and str(arguments[0]).startswith(str(state)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def after(state: Path, name: str) -> dict[str, object]:
    """What a new start finds and does."""
    keys.init(state, NOW + timedelta(hours=1))
    current = KeyFolder(state).load(name).public_key.keyid
    return {
        "same": len({root_versions(state, repository) for repository in REPOSITORIES}) == 1,
        "named": all(
            current in newest_root(state, repository).keys for repository in REPOSITORIES if name != "targets"
        ),
        "waiting": KeyFolder(state).next(name) is not None,
        "follow": follow(state, NOW + timedelta(hours=1)).ok,
    }


def main(folder: Path, name: str, step: int) -> None:
    """Try every ``step``-th n, each on a fresh copy."""
    kept, state = folder / "kept", folder / "hub"
    state.rename(kept)
    for n in range(1, 1000, step):
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(kept, state)
        child = os.fork()
        if child == 0:
            die_at(n, state)
            keys.rotate(state, name, NOW)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            found = after(state, name)
        except SigningError as error:
            found = {"error": str(error)}
        sys.stdout.write(json.dumps({"n": n, "code": code, **found}) + "\n")
        if code == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
