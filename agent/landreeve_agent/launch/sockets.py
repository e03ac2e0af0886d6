"""Listening sockets that outlive the agent: while an update of itself ends one and starts the next, whoever calls waits
in the backlog and is answered late, instead of being refused.

The agent hands each socket to the launcher over one end of a datagram socket pair: the name as the message, the socket
beside it. The launcher passes all it holds to the next agent and lets go of them, so that one which knows nothing of
them loses no more than one start. Standard library only, as all that the launcher is made of.
"""

import contextlib
import json
import os
import socket
from collections.abc import Mapping, MutableMapping

HELD = "LANDREEVE_SOCKETS"
KEEPER = "LANDREEVE_KEEPER"
_NAME_BYTES = 300
_MOST = 16


class Keeper:
    """The launcher's side: what was handed over, by name."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._mine, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._mine.setblocking(False)

    def environ(self) -> dict[str, str]:
        """How the next agent finds its sockets, and where it hands them over again."""
        return {HELD: json.dumps(self._held), KEEPER: str(self._theirs.fileno())}

    def descriptors(self) -> tuple[int, ...]:
        """What the next agent inherits."""
        return (self._theirs.fileno(), *self._held.values())

    def take(self) -> None:
        """Whatever has been handed over since; a name again replaces what was held under it."""
        with contextlib.suppress(OSError):  # nothing more
            while True:
                name, descriptors, _, _ = socket.recv_fds(self._mine, _NAME_BYTES, 1)
                for descriptor in descriptors:
                    self._hold(name.decode(errors="replace"), descriptor)

    def _hold(self, name: str, descriptor: int) -> None:
        if name not in self._held and len(self._held) >= _MOST:
            os.close(descriptor)
            return
        with contextlib.suppress(KeyError):
            os.close(self._held.pop(name))
        self._held[name] = descriptor

    def let_go(self) -> None:
        """Close what is held: the agent that was started has it, or nobody wants it."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """A TCP socket that listens there; `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle on and every answer waits 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(backlog)
    except OSError:
        listening.close()
        raise
    return listening


def named(purpose: str, host: str, port: int) -> str:
    """The name of a socket, by what the settings ask for: other settings, another socket."""
    return f"{purpose} {host} {port}"[:_NAME_BYTES]


def taken(name: str, environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening socket that the launcher holds under this name, once; None when there is none. Whoever takes it
    calls `leave`, for the start after this one."""
    held = _read(environ)
    descriptor = held.pop(name, None)
    if descriptor is None:
        return None
    environ[HELD] = json.dumps(held)
    try:
        found = socket.socket(fileno=descriptor)
    except (OSError, ValueError):
        return None
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.close()
        return None
    os.set_inheritable(descriptor, False)
    return found


def drop(environ: MutableMapping[str, str] = os.environ) -> None:
    """Close those that nobody took: the settings name another address now."""
    for descriptor in _read(environ).values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    environ.pop(HELD, None)


def leave(name: str, listening: socket.socket, environ: Mapping[str, str] = os.environ) -> None:
    """Hand a listening socket to the launcher; nothing happens without one."""
    if KEEPER not in environ:
        return
    with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(int(environ[KEEPER]))) as keeper:
        socket.send_fds(keeper, [name.encode()], [listening.fileno()], socket.MSG_DONTWAIT)


def _read(environ: Mapping[str, str]) -> dict[str, int]:
    try:
        held = json.loads(environ.get(HELD, "{}"))
        return {str(name): int(descriptor) for name, descriptor in held.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
