"""The whole story on a shortened year, as `make run` tells it, in a folder whose path has a space."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STORY = Path(__file__).resolve().parents[2] / "docs" / "examples" / "three_sites" / "story.py"


@pytest.mark.story
@pytest.mark.timeout(900)
def test_every_chapter_happens(tmp_path: Path) -> None:
    home = tmp_path / "a demo"
    # Every departure, as thinned data would leave too few labels to decide on; the year ends in September.
    shortened = {"SPEED": "0", "EXIT": "1", "UNTIL": "2013-09-15T00:00:00+00:00"}
    environ = {**os.environ, **shortened, "DEMO_DIR": str(home)}
    told = subprocess.run(
        [sys.executable, str(STORY)], env=environ, capture_output=True, text=True, timeout=880, check=False
    )
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
    report = json.loads((home / "report.json").read_text())
    for site, told_of in report["sites"].items():
        book = told_of["delivery"]
        assert (book["gaps"], book["facts"]) == (0, book["highwater"]), site
        assert told_of["months"], site
