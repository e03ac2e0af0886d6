"""What people hear of a hub whose disk is full, or has changed what it keeps."""

import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.exchange.archive import write_archive

from tests.hub.hub_without_broker import Hub, push, release


async def test_release_for_which_there_is_no_room_is_refused_in_words(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.blobs, "free_bytes", lambda: 1000)
    headers = {"Content-Type": "application/x-tar"}
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        answer = await ann.post("/api/v1/releases", content=write_archive(release("one")), headers=headers)
    assert answer.status_code == 507
    assert "free some space" in answer.json()["detail"]
    assert hub.blobs.digests() == frozenset()


async def test_damaged_release_says_so_until_it_is_pushed_again(hub: Hub) -> None:
    packed = release("one")
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        digest = await push(ann, packed)
        hub.blobs.path(digest).write_bytes(b"{}")
        answer = await ann.get(f"/api/v1/releases/{digest}/archive")
        assert answer.status_code == 500
        assert "push it again" in answer.json()["detail"]
        assert await push(ann, packed) == digest
        assert (await ann.get(f"/api/v1/releases/{digest}/archive")).status_code == 200
