"""The rollout wizard over the real API: what it builds, and what the API has against it."""

import html
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from landreeve_hub.access.roles import Role
from landreeve_hub.store import tables
from sqlalchemy import insert

from tests.hub.hub_without_broker import Hub, rolled_out
from tests.hub.test_console_records import signed_in, text


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    made = Hub(tmp_path)
    await made.enrol()
    async with await made.person("ann", Role.ML_ENGINEER) as ann, await made.person("bob", Role.APPROVER) as bob:
        await rolled_out(made, ann, bob)
    yield made
    made.store.close()


def plain(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def order_in(page: str) -> Any:
    found = re.search(r'data-body="([^"]+)"', page)
    return json.loads(html.unescape(found[1])) if found else None


@pytest.mark.parametrize(
    ("after", "said", "arabic"),
    [
        ("landreeve-agnet", "plan.after: no component 'landreeve-agnet' is known; there are: delay", "لا مكوّن باسم"),
        ("delay", "plan.after: delay cannot come after itself", "لا يمكن أن يأتي"),
        ("a b!", "plan.after:", "plan.after:"),
    ],
)
async def test_what_the_api_has_against_the_order_is_shown_and_nothing_can_be_started(
    hub: Hub, after: str, said: str, arabic: str
) -> None:
    for lang, words in (("en", said), ("ar", arabic)):
        async with await signed_in(hub, f"ann-{lang}", Role.ML_ENGINEER, lang) as client:
            page = await text(client, f"/rollouts/new?after={after}")
            assert words in plain(page)
            assert order_in(page) is None
            assert f'value="{after}"' in page  # what was typed stays


async def test_what_must_come_first_is_part_of_what_is_started(hub: Hub) -> None:
    row = {"digest": "a" * 64, "model": "landreeve-agent", "version": "2", "state": "approved", "manifest_bytes": 1}
    await hub.store.write(lambda c: c.execute(insert(tables.releases).values(row)) and None)
    async with await signed_in(hub, "eve", Role.ML_ENGINEER) as client:
        page = await text(client, "/rollouts/new?model=delay&after=landreeve-agent")
        assert order_in(page)["plan"]["after"] == ["landreeve-agent"]
        assert "after" not in order_in(await text(client, "/rollouts/new?model=delay"))["plan"]
        assert "What must come first on each site" in page
    async with await signed_in(hub, "eva", Role.ML_ENGINEER, "ar") as client:
        assert "ما يجب أن يسبق في كل موقع" in await text(client, "/rollouts/new")
