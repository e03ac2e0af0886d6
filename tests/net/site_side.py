"""The site's end of a bad line: the agent's own outbox and session, in a process and namespace of its own.

``python site_side.py FOLDER KEYS``. Lines on standard input: ``make N SECONDS`` makes N facts spread over that time,
``burst N`` makes them at once, ``wait SECONDS`` waits until the outbox is empty or the time is over; each is answered
with a line of JSON.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlite_utils import Database as SqliteDatabase

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve.wire.messages import DeviceState, Event, Metrics, SignedDesired  # noqa: E402 - needs the path above
from landreeve_agent.link.outbox import Outbox  # noqa: E402
from landreeve_agent.link.session import Handlers, Options, Session  # noqa: E402
from landreeve_agent.store.database import Database  # noqa: E402

from tests.net.line import BROKER_PORT, DEVICE, FLEET, HUB  # noqa: E402

# The product's default spreads reconnects over a minute; here one device returns, and each fault has 40 s.
OPTIONS = Options(reconnect_jitter_s=1.0)
PADDING = "It happened and is told in one plain sentence, as long as such sentences are. "


@dataclass(frozen=True)
class Who:
    device: str = DEVICE
    fleet: str = FLEET
    broker_host: str = HUB
    broker_port: int = BROKER_PORT


def utc_now() -> datetime:
    return datetime.now(UTC)


class Site:
    def __init__(self, folder: Path, keys: Path) -> None:
        self.database = Database(folder / "agent.db")
        self.outbox = Outbox(self.database)
        self.made = 0
        handlers = Handlers(self._ignore, self._ignore, lambda *_: None)
        state = DeviceState(session=0, online=True, at="")
        self.session = Session(Who(), keys, self.outbox, handlers, lambda: state, clock=utc_now, options=OPTIONS)
        self.problems: set[str] = set()
        self.peak_mb = self.rss_mb = 0.0
        self.resent = 0

    async def _ignore(self, _order: SignedDesired | object) -> None:
        return

    async def make(self, count: int, over_s: float) -> None:
        """Nine events and a row of metrics at a time, as a busy site makes them."""
        began = time.monotonic()
        for number in range(count):
            self.made += 1
            name = f"n{self.made}"
            body = Event(name=name, subject="s", cause="c", sentence=PADDING * 2)
            fact = Metrics(metric_set=1, rows=((time.time(), *map(float, range(50))),)) if number % 10 == 9 else body
            await self.database.write(lambda db, fact=fact: self.outbox.enqueue(db, fact, utc_now()))  # type: ignore[misc]
            await asyncio.sleep(max(0.0, began + over_s * (number + 1) / count - time.monotonic()))

    async def burst(self, count: int) -> None:
        """As fast as the disk takes them, a hundred to a write."""

        def write(db: SqliteDatabase) -> None:
            for _ in range(100):
                self.made += 1
                body = Event(name=f"n{self.made}", subject="s", cause="c", sentence=PADDING * 2)
                self.outbox.enqueue(db, body, utc_now())

        for _ in range(count // 100):
            await self.database.write(write)

    async def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (await self.outbox.size()).facts and time.monotonic() < deadline:  # noqa: ASYNC110 - looks at the store
            await asyncio.sleep(0.05)
        return not (await self.outbox.size()).facts

    def begin(self) -> None:
        """From now on anew: memory and problems."""
        self.problems.clear()
        self.resent = self.session.contact.counts.resent
        self.rss_mb = self.peak_mb = psutil.Process().memory_info().rss / 1e6

    async def watch(self) -> None:
        """Its own memory, and what it says is wrong."""
        process = psutil.Process()
        while True:
            self.peak_mb = max(self.peak_mb, process.memory_info().rss / 1e6)
            if self.session.contact.problem:
                self.problems.add(self.session.contact.problem)
            await asyncio.sleep(0.1)

    def report(self, *, empty: bool) -> dict[str, object]:
        counts = self.session.contact.counts
        return {
            "made": self.made,
            "empty": empty,
            "rss_mb": round(self.rss_mb, 1),
            "peak_mb": round(self.peak_mb, 1),
            "connections": counts.connections,
            "sent": counts.sent,
            "resent": counts.resent - self.resent,
            "problems": sorted(self.problems),
            "connected": self.session.contact.connected,
        }


async def main(folder: Path, keys: Path) -> None:
    site = Site(folder, keys)
    running = asyncio.create_task(site.session.run())
    async with asyncio.timeout(30):
        await site.session.connected.wait()
    watching = asyncio.create_task(site.watch())
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    while text := await asyncio.to_thread(sys.stdin.readline):
        match text.split():
            case ["make", count, seconds]:
                site.begin()
                await site.make(int(count), float(seconds))
                empty = False
            case ["burst", count]:
                site.begin()
                await site.burst(int(count))
                empty = False
            case ["wait", seconds]:
                empty = await site.wait(float(seconds))
            case _:
                empty = False
        sys.stdout.write(json.dumps(site.report(empty=empty)) + "\n")
        sys.stdout.flush()
    for task in (running, watching):
        task.cancel()
    await asyncio.gather(running, watching, return_exceptions=True)
    site.database.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
