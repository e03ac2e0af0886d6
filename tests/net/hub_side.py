"""The hub's end of a bad line, in a process and namespace of its own: broker, ingest, and a portal that nobody should
believe. ``python hub_side.py FOLDER``; ``kill`` on standard input kills the broker, which its watcher brings back.
"""

import asyncio
import json
import os
import ssl
import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from landreeve_hub.broker.child import Broker, find_program  # noqa: E402 - needs the path above
from landreeve_hub.broker.plan import BrokerPlan, Guests  # noqa: E402
from landreeve_hub.fleet.authority import Authority  # noqa: E402
from landreeve_hub.ingest.appliers import standard_appliers  # noqa: E402
from landreeve_hub.ingest.line import Address, Line  # noqa: E402
from landreeve_hub.ingest.receive import Receiver  # noqa: E402
from landreeve_hub.ingest.speech import Speech  # noqa: E402
from landreeve_hub.store import tables  # noqa: E402
from landreeve_hub.store.database import Store  # noqa: E402
from landreeve_hub.store.upsert import upsert  # noqa: E402

from tests.net.line import BROKER_PORT, DEVICE, FLEET, HUB, PORTAL_PORT  # noqa: E402

PORTAL_NAME = "portal.invalid"


class Portal:
    """Speaks TLS as somebody else, and remembers whatever is said to it."""

    def __init__(self) -> None:
        self.visits = 0
        self.bytes = 0

    async def start(self, folder: Path) -> None:
        stranger = Authority(folder)
        stranger.init(datetime.now(UTC))
        pair = stranger.issue_server("broker", datetime.now(UTC), [PORTAL_NAME])
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pair.certificate, pair.key)
        context.sni_callback = self._visited
        await asyncio.start_server(self._serve, HUB, PORTAL_PORT, ssl=context)

    def _visited(self, *_: object) -> None:
        self.visits += 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            self.bytes += len(data)
        writer.close()


async def main(folder: Path) -> None:
    now = datetime.now(UTC)
    authority = Authority(folder)
    authority.init(now)
    server = authority.issue_server("broker", now, [HUB])
    client = authority.issue_client("hub", now)
    plan = BrokerPlan(FLEET, HUB, BROKER_PORT, folder / "broker", authority.ca_path, server.certificate, server.key)
    broker = Broker(plan, find_program(), Guests(frozenset({DEVICE})))
    await broker.start()
    watching = asyncio.create_task(broker.watch())
    portal = Portal()
    await portal.start(folder / "portal")
    store = Store(folder / "hub.db")
    await store.write(lambda c: upsert(c, tables.devices, {"id": DEVICE, "fleet": FLEET, "site": "net"}))
    line = Line(Address(HUB, BROKER_PORT, authority.ca_path, client.certificate, client.key), FLEET)
    speech = Speech(line.publish)
    appliers = standard_appliers(audit=lambda _c, _d, _f: None)
    receiver = Receiver(store, FLEET, appliers, speech.publish, lambda: datetime.now(UTC), listeners=[speech.heard])
    line.on_message = receiver.take
    receiver.start()
    line.start()
    while not line.connected:  # noqa: ASYNC110 - another thread connects
        await asyncio.sleep(0.02)
    say({"ready": True})
    while text := await asyncio.to_thread(sys.stdin.readline):
        if text.strip() == "kill" and broker.pid is not None:
            os.kill(broker.pid, 9)
        say({"visits": portal.visits, "bytes": portal.bytes, "broker": broker.generation})
    line.stop()
    receiver.stop()
    await broker.stop()
    await watching
    store.close()


def say(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
