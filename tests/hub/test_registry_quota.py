"""What devices may send in a day is counted in the store: nobody gains by a hub that starts again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landreeve_hub.errors import QuotaError
from landreeve_hub.registry.quota import Quota
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import func, select

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


class Hub:
    """A store that is closed and opened again, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = NOON
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        self.quota = Quota(self.store, 1000, lambda: self.now)

    async def offer(self, digest: str, size: int, device: str = "d-1", *, hours: float = 0.0) -> bool:
        self.now += timedelta(hours=hours)
        try:
            await self.quota.charge(device, digest, size)
        except QuotaError:
            return False
        return True


async def test_a_quota_outlives_the_hub(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub.db")
    assert await hub.offer(A, 700)
    hub.store.close()
    hub.start()
    assert not await hub.offer(B, 301, hours=1)
    assert await hub.offer(B, 301, "d-2")  # each device has its own
    assert await hub.offer(A, 700)  # tried again, counted once
    assert await hub.offer(C, 300)
    assert not await hub.offer(B, 301, hours=22.9)
    assert await hub.offer(B, 301, hours=0.2)  # the first came a day ago
    hub.store.close()


async def test_an_artifact_that_is_tried_for_days_frees_no_room_before_its_own_day_is_over(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub.db")
    assert await hub.offer(A, 600)
    assert await hub.offer(A, 600, hours=20)
    assert not await hub.offer(B, 500, hours=3)
    assert await hub.offer(B, 500, hours=1.1)
    hub.store.close()


async def test_a_refusal_says_when_there_is_room_and_counts_nothing(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub.db")
    await hub.offer(A, 400)
    await hub.offer(B, 500, hours=2)
    hub.now += timedelta(hours=1)
    with pytest.raises(QuotaError, match=r"offers 450 bytes on top of 900 .* 1,000 .*from 2026-05-02T12:00:00") as told:
        await hub.quota.charge("d-1", C, 450)
    assert "transfer.quota_mb" in str(told.value)
    with pytest.raises(QuotaError, match="raise the setting"):
        await hub.quota.charge("d-1", C, 1001)
    assert await hub.offer(C, 100)
    hub.store.close()


async def test_what_is_older_than_a_day_is_forgotten(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "hub.db")
    for number in range(5):
        assert await hub.offer(f"{number}" * 64, 1, f"d-{number}", hours=10)
    count = select(func.count()).select_from(tables.upload_charges)
    assert await hub.store.read(lambda c: c.execute(count).scalar()) == 3
    hub.store.close()
