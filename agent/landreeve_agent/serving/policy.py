"""Is this graph one that may be loaded? Asked of a child process under resource limits, before any runtime sees it.

A child, because parsing hostile protobuf is native code, and because the parser's memory then leaves with it:
the worker stays small. ``python -m landreeve_agent.serving.policy FILE PARENT`` ends with its parent, reads from stdin
what opens the file where it is sealed (`landreeve.blobs.files.Opening`), prints nothing and exits 0, or prints the
reason and exits 3; the graph's ends must be those of ``definition.json`` beside it.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
from landreeve.blobs.files import PLAIN, Files, Opening

from landreeve_agent.serving.deathsig import die_with_parent
from landreeve_agent.serving.errors import LoadFailedError

DEADLINE_S = 60.0
REFUSED = 3
_MAX_ADDRESS_SPACE_BYTES = 4 * 1024**3


def require_accepted(path: Path, files: Files = PLAIN) -> None:
    """Return when the policy accepts the graph; else `LoadFailedError` with its reason."""
    command = [sys.executable, "-m", "landreeve_agent.serving.policy", str(path), str(os.getpid())]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=DEADLINE_S, check=False, input=msgspec.json.encode(files.opening)
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailedError("bad_graph", f"{path.name}: not checked within {DEADLINE_S:g} s") from error
    if done.returncode == REFUSED:
        raise LoadFailedError("bad_graph", done.stdout.decode(errors="replace").strip())
    if done.returncode != 0:
        words = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise LoadFailedError("unchecked_graph", f"{path.name}: the check itself failed: {words[:300]}")


def main(path: str, parent: int) -> int:
    """Check one file and exit."""
    die_with_parent(parent)
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE_BYTES, _MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from landreeve.release.manifest import BadReleaseError
    from landreeve_models.definition import BadDefinitionError, load_definition
    from landreeve_models.onnx_policy import check

    graph = Path(path)
    files = msgspec.json.decode(sys.stdin.buffer.read(), type=Opening).files()
    described = (graph.parent / "definition.json").exists()
    try:
        check(files.read(graph), signature=load_definition(graph.parent, files).signature() if described else None)
    except (BadReleaseError, BadDefinitionError) as error:
        sys.stdout.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
