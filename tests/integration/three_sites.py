"""The demo's world for tests: the same programs and the same story, in a folder of its own."""

import sys
from datetime import UTC, datetime
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "three_sites"
if str(EXAMPLE) not in sys.path:
    sys.path.insert(0, str(EXAMPLE))

from world import Options, World  # noqa: E402  (the example is a folder of programs, not a package)


def small_world(home: Path, every: int) -> World:
    """Three sites that see every k-th departure, without waiting."""
    return World(Options(home=home, speed=0.0, leave=True, every=every, end=datetime(2014, 1, 1, 6, tzinfo=UTC)))
