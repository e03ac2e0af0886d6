"""The agent updates itself and is killed meanwhile, alone or together with its launcher, as by a power cut."""

import http.client
import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from landreeve_hub.commands.agents import packed

from tests.agent.onnx_models import body
from tests.faults.table import Table
from tests.faults.yard import MODEL, Site, Yard
from tests.integration.test_agent_update import wheel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AGENT = "landreeve-agent"
_numbers = itertools.count(1)
PHASES = ("STAGED", "PREFLIGHT", "ACTIVATING", "PROBATION", "COMMITTED")
DIE = (
    *(f"{when}:{phase}" for phase in PHASES for when in ("before", "after")),
    *("begin:prove", "end:prove", "begin:activate", "end:activate", "begin:look", "end:look"),
)
CUT = ("end:prove", "begin:activate", "end:activate", "after:PROBATION", "end:look", "before:COMMITTED")
BACK = (("before:ROLLING_BACK", "die"), ("after:ROLLING_BACK", "cut"), ("before:ROLLED_BACK", "die"))
WORDS = {"die": "SIGKILL of the agent", "cut": "power cut"}


def made(folder: Path, *, broken: bool = False) -> tuple[Path, str]:
    """A wheel that holds nothing but a higher version, and a module that marks a ``broken`` one: it passes its own test
    and never comes up."""
    version = f"9.9.{next(_numbers)}"
    return wheel(folder, version, {"built_in_haste.py": ""} if broken else {}), version


def version_of(site: Site) -> str:
    """The agent's version as the hub knows it."""
    rows = site.yard.process.get("devices")
    found = rows["items"] if isinstance(rows, dict) else rows
    return next(str(row["agent"]) for row in found if row["id"] == site.device)


def named(point: str, action: str) -> object:
    fault = f"agent updates itself: {WORDS[action]} {point}"
    return pytest.param((point, action, fault), marks=pytest.mark.fault(fault), id=f"{action}-{point}")


ROWS = [*(named(point, "die") for point in DIE), *(named(point, "cut") for point in CUT)]


@pytest.mark.parametrize("kill", ROWS)
def test_agent_is_killed_while_it_updates_itself(
    yard: Yard, launched: Site, table: Table, kill: tuple[str, str, str]
) -> None:
    site, deaths = launched, launched.deaths
    point, action, fault = kill
    path, version = made(site.folder)
    site.arm(point, action)
    ended = yard.ended(yard.order(yard.take(packed([path], "")), site, model=AGENT))
    assert not (site.faults / "point").exists(), f"nobody died at {point}: the point is not reached"
    site.until("the new version", lambda: version_of(site) == version)
    row = site.judged(fault, ended, "FINISHED")
    table.add(row)
    assert site.deaths - deaths == (action == "cut")
    assert row.holds, row


@pytest.mark.parametrize("kill", [named(*one) for one in BACK])
def test_agent_is_killed_while_it_returns_from_one_that_does_not_come_up(
    yard: Yard, launched: Site, table: Table, kill: tuple[str, str, str]
) -> None:
    point, action, fault = kill
    site, before = launched, version_of(launched)
    path, _ = made(site.folder, broken=True)
    site.arm(point, action)
    ended = yard.ended(yard.order(yard.take(packed([path], "")), site, model=AGENT))
    assert not (site.faults / "point").exists(), f"nobody died at {point}: the point is not reached"
    site.until("the version before", lambda: version_of(site) == before)
    causes = [cause for state, cause in site.transitions() if state == "ROLLED_BACK"]
    row = site.judged(fault, f"{ended}, {causes[-1] if causes else '-'}", "ROLLED_BACK, boot_loop")
    table.add(row)
    assert row.holds, row


@dataclass
class Patient:
    """Applications that wait for their answers, as long as it takes: one keeps its connection until the server ends it
    with an answer, one makes a new connection for each request. None asks again what was not answered."""

    port: int
    waits: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Patient":
        self._threads = [threading.Thread(target=self._go, args=(keeps,), daemon=True) for keeps in (True, False)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _go(self, keeps: bool) -> None:
        connection, number = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), 0
        while not self._done.wait(0.01):
            number += 1
            began = time.monotonic()
            try:
                sent = json.dumps(body(id=f"patient-{keeps}-{number}"))
                connection.request("POST", f"/v2/models/{MODEL}/infer", sent, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failed.append(f"{number} {keeps=}: {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{number} {keeps=}: {type(error).__name__} {error}")
                connection.close()
            self.waits.append(time.monotonic() - began)
            if not keeps:
                connection.close()
        connection.close()


FAULT = "agent updates itself: while applications ask that wait"


@pytest.mark.fault(FAULT)
def test_nobody_is_refused_while_the_agent_updates_itself(yard: Yard, launched: Site, table: Table) -> None:
    site = launched
    path, version = made(site.folder)
    with Patient(site.prober.port()) as callers:
        ended = yard.ended(yard.order(yard.take(packed([path], "")), site, model=AGENT))
        site.until("the new version", lambda: version_of(site) == version)
    assert callers.failed == []
    note = f"{len(callers.waits)} requests, longest {max(callers.waits):.1f} s"
    row = site.judged(FAULT, ended, "FINISHED", note)
    table.add(row)
    assert row.holds, row
