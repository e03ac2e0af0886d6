"""The console as an ASGI application: who is sent where, what is kept, what ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fake_hub import FakeHub
from fake_site import COOKIE, FakeSite
from landreeve_agent.console import pages as site_pages
from landreeve_hub.console import pages as hub_pages
from landreeve_hub.fleet.filter import select

SIGNED_IN = {"cookie": f"{COOKIE}=yes"}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    app = FakeSite().app()
    site_pages.install(app)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as client:
        yield client


async def test_a_stranger_is_sent_to_sign_in_and_back(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/models/flight-delay")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/models/flight-delay")
    assert (await client.get("/login")).status_code == 200


async def test_a_stranger_gets_no_stream(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/live/models")).status_code == 204


async def test_every_page_carries_a_strict_policy(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/", headers=SIGNED_IN)
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert answer.headers["cache-control"] == "no-store"


async def test_assets_are_kept_for_ever_and_packed(client: httpx2.AsyncClient) -> None:
    page = (await client.get("/login")).text
    path = page.partition('src="')[2].partition('"')[0]
    answer = await client.get(path)
    assert "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-encoding"] == "gzip"
    assert (await client.get("/assets/app.js")).status_code == 404


async def test_unknown_pages_and_calls_say_so(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/nowhere", headers=SIGNED_IN)).status_code == 404
    assert (await client.get("/models/nobody", headers=SIGNED_IN)).status_code == 404
    assert (await client.put("/models")).status_code == 405


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
async def test_preferences_never_lead_to_another_host(client: httpx2.AsyncClient, target: str) -> None:
    answer = await client.get("/preferences", params={"theme": "dark", "next": target})
    assert answer.headers["location"] == "/"
    assert "theme=dark" in answer.headers["set-cookie"]


async def test_preferences_take_known_values_only(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/preferences", params={"theme": "x; Domain=evil", "lang": "ar", "next": "/models"})
    assert answer.headers.get_list("set-cookie") == ["lang=ar; Path=/; Max-Age=31536000; SameSite=Strict"]


async def test_what_sites_say_is_escaped() -> None:
    fake = FakeSite()
    fake.open = True
    fake.status["verdict"]["sentence"] = "<script>alert(1)</script>"
    fake.status["site"] = '"><img src=x>'
    page = await fetch(fake, site_pages, "/")
    assert "<script>alert" not in page
    assert "<img" not in page


async def test_a_stream_tells_changes_and_ends_when_asked() -> None:
    fake = FakeSite()
    fake.open = True
    app = fake.app()
    console = site_pages.install(app)
    stream = asyncio.create_task(listen(console, "/live/models", 2))
    await asyncio.sleep(0.2)
    fake.status["models"][0]["today"] = 8732
    async with asyncio.timeout(10):
        first, second = await stream
    assert set(first) >= {"live_cards", "live_nav"}
    assert list(second) == ["live_cards"]
    assert "8,732" in second["live_cards"]


async def listen(console: Any, path: str, wanted: int) -> list[dict[str, str]]:
    """The first patches of a page's stream; then the console is closed, and the stream must end by itself."""
    patches: list[dict[str, str]] = []
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await never.wait()
        return {}

    async def send(message: dict[str, Any]) -> None:
        text = message.get("body", b"").decode()
        if text.startswith("event: patch"):
            patches.append(json.loads(text.partition("data: ")[2]))
        if len(patches) == wanted:
            console.close()

    await console({"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}, receive, send)
    return patches


async def test_numbers_of_strangers_cannot_break_a_page() -> None:
    fake = FakeHub()
    fake.open = True
    for row in fake.fleet["devices"]:
        row.update(p95_ms=None, psi=None, last_seen="", certificate_days=None, models=[], predictions=None)
    for path in ("/", "/devices/d-000000000001", "/rollouts", "/drift", "/incidents", "/models"):
        assert "d-000000000001" in await fetch(fake, hub_pages, path) or path != "/"


async def fetch(fake: Any, pages: Any, path: str) -> str:
    app = fake.app()
    pages.install(app)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("", ["EWR", "JFK", "LGA"]),
        ("is:healthy", ["EWR", "JFK", "LGA"]),
        ("hw:npu", ["JFK"]),
        ("-hw:npu", ["EWR", "LGA"]),
        ("model:flight-delay@v4", ["EWR"]),
        ("model:flight@3 lga", ["LGA"]),
        ("is:offline", []),
        ("d-000000000002", ["LGA"]),
    ],
)
def test_filter_terms_are_joined_by_and(text: str, sites: list[str]) -> None:
    assert [row["site"] for row in select(FakeHub().fleet["devices"], text)] == sites


def test_filter_by_tag_knows_key_value_and_both() -> None:
    rows = [{"site": "a", "labels": {"region": "gulf"}}, {"site": "b", "labels": {}}]
    for text in ("tag:region", "tag:gulf", "tag:region=gulf"):
        assert [row["site"] for row in select(rows, text)] == ["a"]
    assert [row["site"] for row in select(rows, "-tag:gulf")] == ["b"]


async def test_site_tells_what_was_tried_what_won_and_why_others_fell() -> None:
    page = await fetch(open_site(), site_pages, "/models/flight-delay")
    assert "<b><bdi>openvino cpu int8 nncf 2 threads</bdi></b>" in page
    assert "accuracy fell from 0.975 to 0.53" in page
    assert ("3 more were tried" in page, "Waiting for its turn" in page) == (True, True)


async def test_hardware_page_tells_what_is_proven_and_what_to_do_about_the_rest() -> None:
    page = await fetch(open_site(), site_pages, "/hardware")
    assert "computed the right answer" in page
    assert "load intel_vpu: modprobe intel_vpu" in page


async def test_hub_tells_the_winner_of_each_class_and_who_started_from_it() -> None:
    fake = FakeHub()
    fake.open = True
    page = await fetch(fake, hub_pages, "/models/flight-delay")
    assert ("3 of 3 boxes agree" in page, "1 of 2 boxes agree" in page) == (True, True)
    assert page.count("started from the winner of its class") == 2
    assert "accuracy fell from 0.975 to 0.53" in page


async def test_box_that_waits_is_shown_with_its_key_to_those_who_may_let_it_in() -> None:
    fake = FakeHub()
    fake.open = True
    page = await fetch(fake, hub_pages, "/")
    assert "wait to be let in" not in page
    key = "ab12 cd34 ef56 7890 ab12 cd34 ef56 7890"
    row = {"device": "d-abc", "site": "BOS", "fingerprint": key, "address": "192.0.2.7", "replaces": "d-old"}
    fake.waiting = [{**row, "asked": "2026-01-01T00:00:00Z", "state": "waiting"}]
    page = await fetch(fake, hub_pages, "/")
    assert (key in page, "would replace" in page, "d-old" in page) == (True, True, True)
    assert "POST /api/v1/enrolments/d-abc/approve" in page
    fake.permissions = ["view"]
    assert "/enrolments/d-abc/approve" not in await fetch(fake, hub_pages, "/")


async def test_device_is_thrown_out_by_those_who_may_and_a_former_one_shows_its_successor() -> None:
    fake = FakeHub()
    fake.open = True
    assert "/revoke" not in await fetch(fake, hub_pages, "/devices/d-000000000000")
    fake.permissions = ["view", "devices"]
    assert "POST /api/v1/devices/d-000000000000/revoke" in await fetch(fake, hub_pages, "/devices/d-000000000000")


def open_site() -> FakeSite:
    fake = FakeSite()
    fake.open = True
    return fake
