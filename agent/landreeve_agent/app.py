"""The composition root of the supervisor: builds the rooms, keeps them up, ends them.

Order at start: settings, lock, store, what served before (without any network), worker, API, link. A room that
fails is shown and started again; bad settings start everything that is safe with the defaults, and say so.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
from landreeve.cli import note
from landreeve.settings import SettingsError

from landreeve_agent import lean, lock
from landreeve_agent.building import House
from landreeve_agent.config import AgentSettings, StateFolder, load_settings
from landreeve_agent.console.access import write_private
from landreeve_agent.errors import OperatorError
from landreeve_agent.launch.slots import LAUNCHED, RESTART_CODE
from landreeve_agent.serving.deathsig import die_with_parent
from landreeve_agent.store.database import StoreError

logger = logging.getLogger(__name__)

CLOSE_S = 12.0
_LAST_GOOD = "settings.json"


@dataclass(frozen=True)
class Wanted:
    """The settings to run with, and what was wrong with those that were given."""

    settings: AgentSettings
    problem: str = ""


def run_agent(state: StateFolder, environ: Mapping[str, str], flags: Mapping[str, str]) -> int:
    """Run a site until SIGTERM or SIGINT (0), or until another version of it is to start (`RESTART_CODE`).

    Raises `OperatorError` for what the operator must mend first.
    """
    if environ.get(LAUNCHED, "").isdigit():
        die_with_parent(int(environ[LAUNCHED]))
    state.prepare()
    held = lock.take(state.run / "lock")
    try:
        wanted = _settings(state, environ, flags)
        _start_log(wanted.settings.telemetry.log_level)
        return asyncio.run(_live(state, wanted))
    except StoreError as error:
        raise OperatorError(str(error)) from error
    finally:
        state.ports.unlink(missing_ok=True)
        held.release()


def _settings(state: StateFolder, environ: Mapping[str, str], flags: Mapping[str, str]) -> Wanted:
    try:
        settings = load_settings(state, environ, flags).values
    except SettingsError as error:
        note(f"the settings cannot be used: {error}; running with the last good ones until they are mended")
        return Wanted(_last_good(state), str(error))

    write_private(state.run / _LAST_GOOD, msgspec.json.encode(settings))
    return Wanted(settings)


def _last_good(state: StateFolder) -> AgentSettings:
    try:
        return msgspec.json.decode((state.run / _LAST_GOOD).read_bytes(), type=AgentSettings)
    except (OSError, msgspec.DecodeError):
        return AgentSettings()


async def _live(state: StateFolder, wanted: Wanted) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    house = House.build(state, wanted.settings, wanted.problem, clock=lambda: datetime.now(UTC), leave=stop.set)
    try:
        started = asyncio.create_task(house.open())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            started.result()
            _greet(house)
            lean.give_back()
        await stopping
        started.cancel()
        await asyncio.gather(started, return_exceptions=True)
    finally:
        await _close(house)
    return RESTART_CODE if house.restarting else 0


async def _close(house: House) -> None:
    began = time.monotonic()
    try:
        async with asyncio.timeout(CLOSE_S):
            await house.close()
    except TimeoutError:
        # Everything that matters is committed where it happens, so leaving now loses nothing.
        logger.warning("not everything ended within %.0f s; leaving all the same", CLOSE_S)
    logger.info("ended in %.1f s", time.monotonic() - began)


def _greet(house: House) -> None:
    note(f"console    {house.console_url}   one-time code {house.codes.fresh()}")
    note(f"inference  {house.inference.url}")
    for sentence in house.inference.door.sentences():
        note(f"           {sentence}")
    for sentence in (*house.doors.sentences(), *house.doors.problems, *house.moved):
        note(sentence)


def _start_log(level: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", force=True
    )
    # APScheduler tells of every run at info level.
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    with contextlib.suppress(AttributeError):
        logging.captureWarnings(capture=True)
