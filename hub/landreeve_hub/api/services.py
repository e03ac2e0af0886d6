"""What the API is built from: the hub's rooms, as the API needs them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from landreeve.release.layout import Packed

from landreeve_hub.access.limiter import Limiter
from landreeve_hub.api.changes import Changes
from landreeve_hub.audit.log import AuditLog
from landreeve_hub.audit.witnesses import Witnesses
from landreeve_hub.broker.advice import Finding
from landreeve_hub.fleet.identities import Identities
from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.learning.commands import Commands
from landreeve_hub.registry.garbage import Collector
from landreeve_hub.registry.releases import Registered
from landreeve_hub.registry.shelf import Shelf
from landreeve_hub.rollout.runner import RolloutRunner
from landreeve_hub.signing.desk import KeyDesk
from landreeve_hub.store.database import Store


class Releases(Protocol):
    """The registry. Errors: `BadReleaseError` for a release that must not be used, `LookupError` when there is
    none of that digest, `ValueError` when its state does not allow it."""

    shelf: Shelf

    async def register(self, packed: Packed, by: str, now: datetime) -> Registered: ...

    async def approve(self, digest: str, by: str, now: datetime) -> None: ...

    async def awaiting(self) -> dict[str, str]: ...

    async def withdraw(self, digest: str, by: str, now: datetime) -> None: ...

    def pull(self, digest: str) -> Packed: ...

    async def bill(self, digest: str) -> bytes: ...


class Delivery(Protocol):
    """Per device: facts, highwater, gaps, duplicates_suppressed, rejected."""

    async def view(self) -> list[dict[str, Any]]: ...


Mint = Callable[..., Any]
"""(site, labels, now, replaces=…) → awaitable text of a single-use enrolment token."""


@dataclass(frozen=True)
class Services:
    """Wired once in the hub's ``app.py``."""

    store: Store
    releases: Releases
    garbage: Collector
    runner: RolloutRunner
    incidents: Incidents
    audit: AuditLog
    witnesses: Witnesses
    commands: Commands
    delivery: Delivery
    identities: Identities
    mint: Mint
    keys: KeyDesk
    resigned: Callable[[], Awaitable[None]]
    """To be awaited when something was signed or changed hands: releases and documents follow."""
    clock: Callable[[], datetime]
    version: str
    work: Path
    """A folder for uploads under way."""
    fleet: str = "main"
    check_broker: Callable[[], Awaitable[list[Finding]]] | None = None
    """Tries the broker in use and puts on record what is wrong with it; None where there is none."""
    facts_per_s: float | None = None
    """What the settings ask of every device without a rate of its own; None sets no limit."""
    line: dict[str, Any] | None = None
    """What the settings let the line of every site carry that has no rules of its own; None leaves it to the sites."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    changes: Changes = field(default_factory=Changes)
    limiter: Limiter = field(default_factory=Limiter)
    hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "[::1]"})
