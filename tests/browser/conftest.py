"""A console on a real port with a made-up API behind it, and a real Chromium in front."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_hub import FakeHub
from fake_site import FakeSite
from landreeve_agent.console import pages as site_pages
from landreeve_hub.console import pages as hub_pages

CHROMIUM = Path("/usr/bin/chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Served:
    """A running console: its address, the API behind it, and its streams' end."""

    url: str
    fake: Any
    stop: Callable[[], None]


def serve(fake: Any, install: Callable[[Any], Any]) -> Served:
    app = fake.app()
    console = install(app)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def stop() -> None:
        console.close()
        server.should_exit = True
        server.force_exit = True
        thread.join(timeout=5)

    return Served(f"http://127.0.0.1:{port}", fake, stop)


@pytest.fixture
def site() -> Iterator[Served]:
    served = serve(FakeSite(), site_pages.install)
    yield served
    served.stop()


@pytest.fixture
def hub() -> Iterator[Served]:
    served = serve(FakeHub(), hub_pages.install)
    yield served
    served.stop()


# Per module, not per session: while Playwright's loop runs in this thread, no asynchronous test can.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing; install it with: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield chromium
        chromium.close()


@dataclass
class Watched:
    """A page and what went wrong on it: console errors, script errors, requests to anybody else."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        self.page.goto(self.url + path, wait_until="load")


@pytest.fixture
def look(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Open a page of a served console; at the end nothing may have complained."""
    opened: list[Watched] = []
    contexts = []

    def open_page(served: Served, path: str, *, lang: str = "en", theme: str = "light", **options: Any) -> Watched:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        served.fake.open = options.pop("signed_in", True)
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        context.add_cookies([{"name": k, "value": v, "url": served.url} for k, v in (("lang", lang), ("theme", theme))])
        watched = Watched(context.new_page(), served.url)
        listen(watched)
        opened.append(watched)
        watched.go(path)
        return watched

    yield open_page
    for context in contexts:
        context.close()
    assert [complaint for watched in opened for complaint in watched.complaints] == []


def listen(watched: Watched) -> None:
    page, complaints = watched.page, watched.complaints
    page.on(
        "console", lambda message: complaints.append(message.text) if message.type in {"error", "warning"} else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda request: complaints.append(request.url) if not request.url.startswith(watched.url) else None
    )
