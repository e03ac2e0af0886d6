"""A hub that is restored from an older copy of its tables: what it had acknowledged since is gone on both sides.

A real session and outbox over a broker in memory, and the hub's real ingest into its real tables.
"""

import shutil
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from landreeve.wire.codec import encode
from landreeve.wire.messages import Event
from landreeve_hub.ingest.appliers import standard_appliers
from landreeve_hub.ingest.commit import Arrival, commit_batch
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.upsert import upsert
from sqlalchemy import select

from tests.agent.test_link_session import DOWN, UP, Site

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Hub:
    """The ingest behind a broker in memory; ``restore`` puts older tables in its place."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.path = folder / "hub.db"
        self.site = site
        self.open()
        row = {"id": "d-1", "fleet": "demo", "site": "shop", "labels": {}}
        self.store.submit(lambda c: upsert(c, tables.devices, row)).result()
        site.broker.listeners.append(self.hear)

    def open(self) -> None:
        self.store = Store(self.path)

    def hear(self, topic: str, payload: bytes) -> None:
        if not topic.startswith(UP) or topic.endswith(("/state", "/blocks")):
            return
        appliers = standard_appliers(audit=lambda _c, _d, _f: None)
        arrivals = [Arrival("d-1", payload, is_state=False, retained=False)]
        outcome = self.store.submit(lambda c: commit_batch(c, arrivals, [], appliers, NOW)).result()
        for _, ack in outcome.acks:
            self.site.broker.publish(f"{DOWN}/ack", encode(ack))

    def back_up(self, target: Path) -> None:
        with sqlite3.connect(self.path) as source, sqlite3.connect(target) as copy:
            source.backup(copy)

    def restore(self, copy: Path) -> None:
        self.store.close()
        for old in self.path.parent.glob("hub.db*"):
            old.unlink()
        shutil.copy(copy, self.path)
        self.open()

    def names(self) -> list[str]:
        rows = self.store.submit_read(
            lambda c: (
                c.execute(select(tables.facts.c.body).order_by(tables.facts.c.epoch, tables.facts.c.seq))
                .scalars()
                .all()
            )
        ).result()
        return [str(body.get("name", body.get("type"))) for body in rows]

    def gaps(self) -> list[tuple[int, int]]:
        rows = self.store.submit_read(lambda c: c.execute(select(tables.gaps)).mappings().all()).result()
        return [(row["first"], row["last"]) for row in rows]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    yield made
    await made.stop()


def event(name: str) -> Event:
    return Event(name=name, subject="s", cause="c", sentence="It happened.")


@pytest.mark.parametrize("kept", [0, 3], ids=["nothing of the site", "an earlier part"])
async def test_hub_set_back_is_told_what_never_comes_and_hears_everything_after_it(
    tmp_path: Path, site: Site, kept: int
) -> None:
    hub = Hub(tmp_path, site)
    await site.say(*(event(f"before{n}") for n in range(kept)))
    await site.emptied()
    hub.back_up(tmp_path / "copy.db")
    await site.say(*(event(f"lost{n}") for n in range(5)))
    await site.emptied()
    hub.restore(tmp_path / "copy.db")
    await site.say(event("after"))
    await site.emptied()
    names = hub.names()
    assert names[:kept] == [f"before{n}" for n in range(kept)]
    assert "after" in names
    assert "link.set_back" in names
    assert hub.gaps() == [(kept + 1, kept + 5)]
    hub.store.close()


async def test_old_acknowledgement_that_comes_again_gives_nothing_up(tmp_path: Path, site: Site) -> None:
    hub = Hub(tmp_path, site)
    await site.say(*(event(f"n{n}") for n in range(4)))
    await site.emptied()
    for _ in range(5):
        site.acknowledge(2)
        await site.say(event("more"))
        await site.emptied()
    assert hub.gaps() == []
    assert "link.set_back" not in hub.names()
    hub.store.close()
