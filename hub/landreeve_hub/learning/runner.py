"""Learning at the hub: loss of quality becomes a training on site, its challenger a draft release.

Everything is read from the tables at each tick, so a restart goes on where it was.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol

from landreeve.release.manifest import parse_config, parse_manifest
from landreeve.wire.ids import check_digest
from landreeve.wire.messages import Candidate, Event, Fact
from sqlalchemy import Connection, select

from landreeve_hub.errors import PeerError
from landreeve_hub.learning import runs
from landreeve_hub.learning.commands import ANSWERS, Commands
from landreeve_hub.learning.retrain import Train, Wait, decide, parse_policy
from landreeve_hub.rollout.sight import serving
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

_LOG = logging.getLogger(__name__)
RETRY = timedelta(seconds=30)


class Challengers(Protocol):
    """Where a challenger comes from and goes to: the uploads over MQTT and the registry."""

    async def fetch(self, device: str, digest: str, size: int, blocks: tuple[str, ...] | None) -> None:
        """The blob is in the hub's blob store when this returns."""

    def read(self, digest: str) -> bytes: ...

    async def register(self, digest: str, *, by: str, device: str, run: str, now: datetime) -> str:
        """Make the release whose blobs are here a draft; its version."""


class Learning:
    """``apply`` belongs to the ingest, `tick` to the hub's clock. ``changed`` is told ``retrains`` or ``releases``."""

    def __init__(
        self,
        store: Store,
        commands: Commands,
        challengers: Challengers,
        clock: Callable[[], datetime],
        changed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._commands = commands
        self._challengers = challengers
        self._clock = clock
        self._changed = changed
        self._fetching: asyncio.Task[None] | None = None
        self._not_before: dict[str, datetime] = {}

    def apply(self, connection: Connection, device: str, fact: Fact) -> None:
        """An applier of the ingest for `Candidate` and `Event`; others are ignored."""
        match fact.body:
            case Candidate() as body:
                runs.candidate(connection, device, body, self._clock())
            case Event() as body:
                if body.name in ANSWERS:
                    self._commands.answer_in(connection, device, body)
                runs.event(connection, device, body, self._clock())
            case _:
                return

    async def tick(self, now: datetime) -> None:
        """Ask for trainings that are due, carry commands, fetch what sites offer."""
        asked = await self._store.write(lambda c: self._ask(c, now))
        await self._commands.resend(now)
        if asked:
            self._changed("retrains")
        if self._fetching is None or self._fetching.done():
            due = [r for r in await self._store.read(runs.offered) if self._not_before.get(r["id"], now) <= now]
            if due:
                self._fetching = asyncio.create_task(self._fetch(due[0], now))

    async def close(self) -> None:
        """Stop a fetch that is under way; it begins again at the next start."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _ask(self, connection: Connection, now: datetime) -> bool:
        changed = runs.settle_commands(connection, now)
        for model in connection.execute(select(tables.models)).all():
            answer = why(connection, model.name, model.definition)
            if isinstance(answer, Train):
                self._request(connection, model.name, answer, now)
                changed = True
        return changed

    def _request(self, connection: Connection, model: str, train: Train, now: datetime) -> None:
        run = f"t-{secrets.token_hex(6)}"
        runs.requested(connection, run, model, train, now)
        span = {"first": rfc3339(train.first), "last": rfc3339(train.last)}
        args = {"model": model, **span, "reason": train.reason, "request": run}
        runs.set_command(connection, run, self._commands.issue_in(connection, now, train.device, "train", args))

    async def _fetch(self, run: dict[str, Any], now: datetime) -> None:
        offer = run["request"]
        try:
            await fetch_release(self._challengers, run["device"], offer["manifest"], offer["manifest_bytes"])
            version = await self._challengers.register(
                offer["manifest"], by=f"site:{run['device']}", device=run["device"], run=offer["run"], now=now
            )
        except ValueError as error:  # a release that must not be used, or bytes that are not what was announced
            sentence = f"The challenger was refused: {error}"
            await self._store.write(lambda c: runs.close(c, run["id"], "rejected", sentence))
        except (PeerError, OSError, LookupError) as error:
            self._not_before[run["id"]] = now + RETRY
            sentence = f"The challenger could not be fetched yet: {error}"
            await self._store.write(lambda c: runs.note(c, run["id"], sentence))
            _LOG.warning("challenger %s of %s could not be fetched, trying again: %s", run["id"], run["device"], error)
        else:
            sentence = f"{run['model']} {version} waits for approval."
            await self._store.write(lambda c: runs.close(c, run["id"], "registered", sentence, offer["manifest"]))
            self._changed("releases")
        self._changed("retrains")


async def fetch_release(challengers: Challengers, device: str, manifest: str, size: int) -> None:
    """Fetch manifest, config and layers of a release from a device, each checked by its digest."""
    await challengers.fetch(device, check_digest(manifest), size, None)
    parsed = parse_manifest(challengers.read(manifest))
    await challengers.fetch(device, parsed.config.sha256, parsed.config.size, None)
    settings = parsed.settings
    await challengers.fetch(device, settings.sha256, settings.size, None)
    blocks = parse_config(challengers.read(settings.sha256)).blocks
    for layer in parsed.layers:
        await challengers.fetch(device, layer.sha256, layer.size, blocks.get(layer.sha256))


def why(connection: Connection, model: str, definition: dict[str, Any]) -> Train | Wait:
    """What learning does about a model now, and why; also shown to people."""
    devices = connection.execute(select(tables.devices.c.id, tables.devices.c.doc).where(~tables.devices.c.revoked))
    now_serving = {row.id: str(serving(row.doc, model).get("release", "")) for row in devices}
    return decide(
        runs.newest_windows(connection, model),
        runs.seen(connection, model),
        parse_policy(definition),
        {device: release for device, release in now_serving.items() if release},
    )
