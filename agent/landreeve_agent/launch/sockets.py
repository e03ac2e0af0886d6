"""Listening sockets that outlive the agent: while one ends and the next one starts, whoever calls waits in the backlog
and is answered late, instead of being refused.

Under the launcher (an update of the agent itself) the agent hands each socket over one end of a datagram socket pair:
the name as the message, the socket beside it. The launcher passes all it holds to the next agent and lets go of them;
so one which knows nothing of them loses no more than one start. Without it, systemd's file descriptor store does the
same at any restart, after a kill too: sd_notify(3) ``FDSTORE=1``, sd_listen_fds(3). Standard library only, as all that
the launcher is made of.
"""

import contextlib
import json
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence

HELD = "LANDREEVE_SOCKETS"
KEEPER = "LANDREEVE_KEEPER"
NOTIFY = "NOTIFY_SOCKET"
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FIRST_PASSED = 3
_NAME_BYTES = 255
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
    return f"{purpose} {host} {port}".replace(":", ".")[:_NAME_BYTES]  # systemd parts names by colons


def taken(name: str, environ: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening socket that launcher or systemd holds under this name, once; None when there is none. Whoever takes
    it calls `leave`, for the start after this one."""
    held = _read(environ)
    descriptor = held.pop(name, None)
    if descriptor is None:
        return None
    _write(environ, held)
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
    for name, descriptor in _read(environ).items():
        with contextlib.suppress(OSError):
            os.close(descriptor)
        if KEEPER not in environ:
            _notify(f"FDSTOREREMOVE=1\nFDNAME={name}", (), environ)
    _write(environ, {})


def leave(name: str, listening: socket.socket, environ: Mapping[str, str] = os.environ) -> None:
    """Hand a listening socket to the launcher, or to systemd; nothing happens without either."""
    if KEEPER not in environ:
        _notify(f"FDSTORE=1\nFDNAME={name}", [listening.fileno()], environ)
        return
    with contextlib.suppress(OSError, ValueError), socket.socket(fileno=os.dup(int(environ[KEEPER]))) as keeper:
        socket.send_fds(keeper, [name.encode()], [listening.fileno()], socket.MSG_DONTWAIT)


def kept(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody may hold the sockets when this process ends."""
    return KEEPER in environ or NOTIFY in environ


def _notify(message: str, descriptors: Sequence[int], environ: Mapping[str, str]) -> None:
    """Tell systemd, where it listens."""
    address = environ.get(NOTIFY, "")
    if not address.startswith(("/", "@")):
        return
    place = f"\0{address[1:]}" if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.connect(place)
        socket.send_fds(manager, [message.encode()], descriptors)


def _write(environ: MutableMapping[str, str], held: Mapping[str, int]) -> None:
    """What is left to take; systemd's own words are read once."""
    for name in _LISTEN:
        environ.pop(name, None)
    if held:
        environ[HELD] = json.dumps(held)
    else:
        environ.pop(HELD, None)


def _passed(environ: Mapping[str, str]) -> dict[str, int]:
    """What systemd passed to this very process, by name; of two with one name the later."""
    process, count, names = (environ.get(name, "") for name in _LISTEN)
    if process != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    for place, name in enumerate(names.split(":")[: int(count)]):
        with contextlib.suppress(KeyError, OSError):
            os.close(found.pop(name))
        found[name] = _FIRST_PASSED + place
    return found


def _read(environ: Mapping[str, str]) -> dict[str, int]:
    if HELD not in environ:
        return _passed(environ)
    try:
        held = json.loads(environ.get(HELD, "{}"))
        return {str(name): int(descriptor) for name, descriptor in held.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
