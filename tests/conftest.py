"""What holds for every test: no clock decides, and the longest ones begin first."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

# With several workers the end of the whole run is the end of the longest file, so these begin first.
LONGEST = ("test_story", "test_kill9", "test_trainer_manager", "test_ingest_mqtt", "test_hub_process")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, each file's own order as it stands."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=rank)
