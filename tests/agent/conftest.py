"""Fixtures of this folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.update_box import Box


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    """A device with the real update runner, started."""
    made = Box(tmp_path)
    await made.start()
    yield made
    await made.kill()
