"""The addresses the supervisor answers on: those the settings name, and while these stay the same, those it had."""

import socket
import time
from collections.abc import Mapping

import msgspec

from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.console.server import listen
from landreeve_agent.errors import StateError
from landreeve_agent.inference import Hold, held_port, hold_port, is_taken
from landreeve_agent.launch import sockets

PORT_WAIT_S = 5.0


def take_ports(state: StateFolder, settings: AgentSettings) -> tuple[socket.socket, Hold]:
    """The console's listening socket and the inference server's port; `StateError` when there is none to have."""
    last, serving = last_ports(state), settings.serving
    try:
        console = _console(settings.console.host, settings.console.port, last)
        try:
            hold = held_port(serving.host, serving.port) or hold_port(
                serving.host, after_a_kill("serving", serving.host, serving.port, last), serving.port
            )
        except OSError:
            console.close()
            raise
    except OSError as error:
        raise StateError(f"no port to listen on: {error}; see the settings console.host and serving.host") from error
    sockets.drop()
    return console, hold


def _console(host: str, wanted: int, last: Mapping[str, int]) -> socket.socket:
    name = sockets.named("console", host, wanted)
    listener = sockets.taken(name) or listen(host, after_a_kill("console", host, wanted, last))
    sockets.leave(name, listener)
    return listener


def after_a_kill(name: str, host: str, wanted: int, last: Mapping[str, int]) -> int:
    """The port to ask for: the one in use until a kill is asked for again, and waited for, unless the settings ask
    for another since: the worker may hold it for a moment longer, and an address that moved would be lost to callers.
    It may be none of the settings': that one was busy."""
    port = last.get(name, 0)
    if not port or last.get(f"{name}_wanted", wanted) != wanted:
        return wanted
    deadline = time.monotonic() + PORT_WAIT_S
    while is_taken(host, port):
        if time.monotonic() > deadline:
            return wanted
        time.sleep(0.1)
    return port


def last_ports(state: StateFolder) -> dict[str, int]:
    """The ports of a supervisor that did not end orderly (which would have removed the file)."""
    try:
        found = msgspec.json.decode(state.ports.read_bytes(), type=dict[str, int | str])
    except (OSError, msgspec.DecodeError):
        return {}
    return {name: port for name, port in found.items() if isinstance(port, int)}


def moved(settings: AgentSettings, listener: socket.socket, hold: Hold) -> tuple[str, ...]:
    """What to tell of ports that are not those the settings name."""
    actual = (listener.getsockname()[1], hold.address[1])
    wanted = (settings.console.port, settings.serving.port)
    names = ("console.port", "serving.port")
    return tuple(
        f"{name} {want} is busy: {got} is used instead"
        for name, want, got in zip(names, wanted, actual, strict=True)
        if want not in (0, got)
    )


def shown(host: str) -> str:
    """An address a program on this box can use for a listening one."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - translated, not bound
