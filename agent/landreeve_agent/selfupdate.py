"""The agent's own component, wired: where its environments lie, and how a new one shows that it is well."""

import os
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING

from landreeve_agent.config import StateFolder
from landreeve_agent.console.status import HubView
from landreeve_agent.launch.environment import Environments
from landreeve_agent.launch.slots import BASE, LAUNCHED, RUNNING, SLOTS_FILE
from landreeve_agent.serving.control import WorkerStatus
from landreeve_agent.update.install import Installer
from landreeve_agent.update.itself import AgentEffects, Health
from landreeve_agent.update.ports import Blobs, Fetcher

if TYPE_CHECKING:
    from landreeve_agent.link.contact import Contact

AGENT_FOLDER = "agent"


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


def health_of(contact: "Contact | None", hub: HubView, worker: WorkerStatus | None) -> Health:
    """Whether the hub has acknowledged something of this process, and whether every wanted model serves."""
    connected = contact is not None and contact.counts.acknowledged > 0
    down = [model.model for model in worker.models if not model.ready] if worker else []
    problem = hub.problem if not connected else ", ".join(down)
    return Health(connected=connected, serving=not down, problem=problem)
