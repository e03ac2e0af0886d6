"""``python -m landreeve_agent.launch.selftest STATE``: would this agent start on this box?

Run by the agent that is in use, in the new one's environment. It reads this box's settings, opens a copy of its store
(with every migration the new version brings), and builds every room's code; it writes nothing in the state folder.
"""

import importlib
import json
import os
import sqlite3
import sys
import tempfile
from pathlib import Path

from landreeve.settings import SettingsError

from landreeve_agent.config import StateFolder, load_settings
from landreeve_agent.store.database import Database
from landreeve_agent.version import agent_version

_ROOMS = ("app", "building", "serving.supervise", "tuning.preflight", "training.manager", "link.session")
_PLAIN = b"SQLite format 3\0"


def main() -> int:
    """Print one JSON line and exit with 0, or say why not and exit with 1."""
    state = StateFolder(Path(sys.argv[1]))
    looked_at = []
    for room in _ROOMS:
        importlib.import_module(f"landreeve_agent.{room}")
    looked_at.append("rooms")
    try:
        load_settings(state, os.environ, {})
        looked_at.append("settings")
    except SettingsError as error:
        # The running agent lives with the same ones: they are no reason against the new one.
        sys.stderr.write(f"settings: {error}\n")
    if _is_plain(state.database):
        _open_copy(state.database)
        looked_at.append("store")
    sys.stdout.write(json.dumps({"version": agent_version(), "looked_at": looked_at}) + "\n")
    return 0


def _is_plain(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_PLAIN)) == _PLAIN
    except OSError:
        return False


def _open_copy(path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="landreeve-selftest-") as folder:
        copy = Path(folder) / "agent.db"
        source, target = sqlite3.connect(f"file:{path}?mode=ro", uri=True), sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        Database(copy).close()


if __name__ == "__main__":
    sys.exit(main())
