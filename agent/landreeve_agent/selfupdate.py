"""The components beside models, wired: the agent itself and the box's firmware, and how new ones show that they are
well."""

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.console.status import HubView
from landreeve_agent.launch.environment import Environments
from landreeve_agent.launch.slots import BASE, LAUNCHED, RUNNING, SLOTS_FILE
from landreeve_agent.serving.control import WorkerStatus
from landreeve_agent.update.firmware import FirmwareEffects
from landreeve_agent.update.install import Installer
from landreeve_agent.update.itself import AGENT, AgentEffects, Health
from landreeve_agent.update.ports import Blobs, Fetcher
from landreeve_agent.update.slotbook import Book
from landreeve_agent.update.slotcommand import CommandSlots, slots_of
from landreeve_agent.update.standing import FIRMWARE
from landreeve_agent.version import agent_version

if TYPE_CHECKING:
    from landreeve_agent.link.contact import Contact

logger = logging.getLogger(__name__)

AGENT_FOLDER = "agent"
FIRMWARE_FOLDER = "firmware"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def beside_models(  # noqa: PLR0917  wiring
    state: StateFolder,
    settings: AgentSettings,
    fetcher: Fetcher,
    blobs: Blobs,
    health: Callable[[], Awaitable[Health]],
    restart: Callable[[], None],
    clock: Callable[[], datetime],
) -> dict[str, AgentEffects | FirmwareEffects]:
    """The effects of each kind of component that is no model."""
    version = agent_version()
    itself = agent_effects(state, fetcher, blobs, version=version, health=health, restart=restart, clock=clock)
    firmware = firmware_effects(state, settings, fetcher, blobs, version=version, health=health, clock=clock)
    return {AGENT: itself, FIRMWARE: firmware}


def agent_effects(
    state: StateFolder, fetcher: Fetcher, blobs: Blobs, *, version: str, health: Callable[[], Awaitable[Health]],
    restart: Callable[[], None], clock: Callable[[], datetime],
) -> AgentEffects:  # fmt: skip
    """What the update machine needs to update this very agent."""
    folder = state.root / AGENT_FOLDER
    return AgentEffects(
        Installer(fetcher, blobs, folder / "releases", version),
        Environments(folder / "env", os.environ.get(BASE) or sys.executable),
        folder / SLOTS_FILE,
        state.root,
        running=os.environ.get(RUNNING, ""),
        launched=LAUNCHED in os.environ,
        restart=restart,
        health=health,
        clock=clock,
    )


def firmware_effects(
    state: StateFolder, settings: AgentSettings, fetcher: Fetcher, blobs: Blobs, *, version: str,
    health: Callable[[], Awaitable[Health]], clock: Callable[[], datetime],
) -> FirmwareEffects:  # fmt: skip
    """What the update machine needs to update this box's firmware, where it has any."""
    folder = state.root / FIRMWARE_FOLDER
    installer = Installer(fetcher, blobs, folder / "releases", version)
    return FirmwareEffects(installer, _slots(settings.firmware.slots_command), Book(folder), health, clock, _boot)


def _slots(command: str) -> CommandSlots | None:
    try:
        return slots_of(command)
    except ValueError as error:
        logger.warning("firmware.slots_command is no command line (%s): firmware is not updated", error)
        return None


def _boot() -> str:
    """Names the running boot of the system; one name where the system gives none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def health_of(contact: "Contact | None", hub: HubView, worker: WorkerStatus | None) -> Health:
    """Whether the hub has acknowledged something of this process, and whether every wanted model serves."""
    connected = contact is not None and contact.counts.acknowledged > 0
    down = [model.model for model in worker.models if not model.ready] if worker else []
    problem = hub.problem if not connected else ", ".join(down)
    return Health(connected=connected, serving=not down, problem=problem)
