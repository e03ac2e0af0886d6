"""The check of `landreeve_hub.broker.check`, run by the hub on the broker it uses: at each start, and when asked.

A broker that does not keep devices apart is an open incident until a later run finds it mended.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, select

from landreeve_hub.broker.advice import Finding, failed
from landreeve_hub.broker.check import Check
from landreeve_hub.broker.probe import Door, Heard
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.incidents.incidents import CLOSED, Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store

log = logging.getLogger(__name__)
KEY = "broker-unsafe"
RECONNECT_S = 5.0


class Line(Protocol):
    """The hub's connection (`landreeve_hub.ingest.line`)."""

    @property
    def connected(self) -> bool: ...

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None: ...


class Tap(Protocol):
    """Where the probes are heard (`landreeve_hub.ingest.tap`)."""

    heard: "queue.Queue[Heard]"

    def listen(self, *, on: bool) -> None: ...


class _LineSide:
    """The hub's end of a check over the line it has anyway: another connection of its name would end that one."""

    def __init__(self, line: Line, tap: Tap, stopping: threading.Event) -> None:
        self.heard = tap.heard
        self._line = line
        self._stopping = stopping

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        deadline = time.monotonic() + RECONNECT_S
        while not self._line.connected and time.monotonic() < deadline and not self._stopping.is_set():
            time.sleep(0.05)  # the broker hung up over what it does not carry; the line comes back by itself
        self._line.publish(topic, payload, retain)
        return True


class SelfTest:
    """One at a time. `run` answers with the findings; `judge` also opens or closes the incident."""

    def __init__(
        self,
        door: Door,
        authority: Authority,
        fleet: str,
        *,
        line: Line,
        tap: Tap,
        store: Store,
        incidents: Incidents,
        clock: Callable[[], datetime],
    ) -> None:
        self._door, self._authority, self._fleet = door, authority, fleet
        self._line, self._tap = line, tap
        self._store, self._incidents, self._clock = store, incidents, clock
        self._order = asyncio.Lock()

    async def run(self) -> list[Finding]:
        """Try the broker; `BrokerError` while the hub itself is not connected to it."""
        async with self._order:
            if not self._line.connected:
                raise BrokerError(
                    f"the hub is not connected to the broker at {self._door.host}:{self._door.port}: nothing to check"
                )
            self._tap.listen(on=True)
            # Its own event for each run: a hub that stops must not wait for what a dying broker still owes.
            door = replace(self._door, stopping=threading.Event())
            try:
                check = Check(door, self._authority, self._fleet, self._clock())
                return await asyncio.to_thread(check.run, _LineSide(self._line, self._tap, door.stopping))
            except asyncio.CancelledError:
                door.stopping.set()
                raise
            finally:
                self._tap.listen(on=False)

    async def judge(self) -> list[Finding]:
        """The same, and what was found is put on record."""
        findings = await self.run()
        if [found.check for found in findings] == ["reach"]:
            log.warning("the broker could not be checked: %s", findings[0].happened)
            return findings
        bad = failed(findings)
        for found in bad:
            log.critical("the broker does not do what it must: expected %s; %s", found.expected, found.happened)
        await self._store.write(lambda connection: self._record(connection, bad))
        return findings

    def _record(self, connection: Connection, bad: Sequence[Finding]) -> None:
        now = self._clock()
        if bad:
            self._incidents.open_in(connection, now, _raised(bad, self._door))
            return
        table = tables.incidents
        query = select(table.c.id).where(table.c.key == KEY, table.c.state != CLOSED)
        for incident in connection.execute(query).scalars().all():
            self._incidents.close_in(connection, now, incident, "hub", "The self-test finds the broker mended.")


def _raised(bad: Sequence[Finding], door: Door) -> Raise:
    what = "; ".join(f"{found.check.replace('_', ' ')}: {found.happened}" for found in bad)
    text = (
        f"The broker at {door.host}:{door.port} does not do what it must ({what}). "
        "`landreeve-hub broker check` says what to change."
    )
    subject: dict[str, Any] = {"checks": [found.check for found in bad]}
    return Raise(KEY, "broker_unsafe", "error", "self_test_failed", text, subject)
