"""``landreeve run``: the supervisor, started without the command line's own library where nothing but a state folder
and settings is asked for. That library is a few megabytes and a quarter of a second that the service never uses.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from landreeve.cli import Exit, fail

from landreeve_agent.config import StateFolder, default_state
from landreeve_agent.errors import AlreadyRunningError, OperatorError


def plain_run(arguments: Sequence[str]) -> tuple[Path | None, list[str]] | None:
    """State folder and settings of a plain ``[--state DIR] run [--set KEY=VALUE]…``; None when anything else is
    asked, which is the full command line's to understand or refuse.

    >>> plain_run(["--state", "/srv/site", "run", "--set", "console.port=0"])
    (PosixPath('/srv/site'), ['console.port=0'])
    >>> plain_run(["run", "--help"]) is None
    True
    """
    left = list(arguments)
    state = None
    if left[:1] == ["--state"] and len(left) > 1 and not left[1].startswith("-"):
        state, left = Path(left[1]), left[2:]
    if left[:1] != ["run"]:
        return None
    sets: list[str] = []
    rest = iter(left[1:])
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--set":
            return None
        value = value if equals else next(rest, "")
        if not value or value.startswith("-"):
            return None
        sets.append(value)
    return state, sets


def run_site(state: Path | None, sets: Sequence[str]) -> None:
    """Run the site until asked to stop; ends the process with a sentence when it cannot."""
    from landreeve_agent import lean

    lean.share_arenas()
    # Where they are installed sqlite-utils imports both to name their types: 50 MB of a small box for nothing we use.
    lean.import_without("sqlite_utils", "pandas", "numpy")
    # FastAPI looks for models of pydantic's first version in every route; there are none.
    lean.do_without("pydantic.v1")
    from landreeve_agent.app import run_agent

    try:
        code = run_agent(StateFolder((state or default_state()).absolute()), os.environ, changes_of(sets))
    except AlreadyRunningError as error:
        fail(Exit.CONFLICT, str(error))
    except OperatorError as error:
        fail(Exit.FAILURE, str(error))
    if code:
        sys.exit(code)


def changes_of(sets: Sequence[str]) -> dict[str, str]:
    """Settings by their keys, from texts ``KEY=VALUE``; ends the process when one is none."""
    changes: dict[str, str] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            fail(Exit.USAGE, f"--set {text!r}: write KEY=VALUE, for example console.port=8411")
        changes[key.strip()] = value
    return changes
