"""Where the hub's tests keep their tables: SQLite, or with ``HUB_STORE=postgres`` a real PostgreSQL of their own.

Only the address is another: each file that a test names as its store becomes a database of that server, the same for
the same file, so that what is closed and opened again is what it was.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from landreeve_hub.store.database import Store

from tests import postgres
from tests.hub.hub_without_broker import Hub

ON_POSTGRES = os.environ.get("HUB_STORE") == "postgres"
on_sqlite = pytest.mark.skipif(ON_POSTGRES, reason="it looks into SQLite's own file")


@pytest.fixture(scope="session", autouse=True)
def stores_on_postgres() -> Iterator[None]:
    """With ``HUB_STORE=postgres``, and then it fails rather than skips where there is no server."""
    if not ON_POSTGRES:
        yield
        return
    if reason := postgres.skip_reason():
        pytest.fail(f"HUB_STORE=postgres: {reason}")
    opened = Store.__init__
    with postgres.server() as server, pytest.MonkeyPatch.context() as patch:

        def init(self: Store, url_or_path: str | Path, *more: Any, **named: Any) -> None:
            url = str(url_or_path)
            if "://" not in url:
                url = server.url("hub_" + hashlib.sha256(url.encode()).hexdigest()[:24])
            opened(self, url, *more, **named)

        patch.setattr(Store, "__init__", init)
        yield


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.store.close()
