"""A model's own process: ``python -m landreeve_agent.serving.host --channels S:I:O[,…] --parent PID``.

It opens one session and runs it for the worker that started it (`landreeve_agent.serving.remote`), over descriptors
it inherited: no name in any file system leads to it. One thread for each channel; it ends when a socket does.
"""

import argparse
import faulthandler
import os
import resource
import signal
import socket
import threading
from pathlib import Path

import msgspec
from landreeve.blobs.files import Opening

from landreeve_agent.serving.arena import Arena, Channel, ChannelClosedError, Signal
from landreeve_agent.serving.control import Plan
from landreeve_agent.serving.deathsig import HOST_OOM, die_with_parent, prefer_for_oom
from landreeve_agent.serving.errors import LoadFailedError, RunFailedError
from landreeve_agent.serving.session import Session, open_session


class Open(msgspec.Struct, frozen=True):
    """Open this graph by this plan; ``opening`` reads it where it is sealed."""

    plan: Plan
    graph: str
    opening: Opening = Opening()


class OpenedBy(msgspec.Struct, frozen=True):
    """The session stands: the plan really used and the graph's ends."""

    plan: Plan
    reason: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class RefusedBy(msgspec.Struct, frozen=True):
    """The graph cannot be opened."""

    cause: str
    sentence: str


def opened(channel: Channel) -> Session:
    """Carry out the first message; `SystemExit` when the graph does not load."""
    _, length = channel.receive()
    wanted = msgspec.json.decode(channel.text(length), type=Open)
    try:
        found = open_session(wanted.plan, wanted.opening.files().read(Path(wanted.graph)))
    except (LoadFailedError, OSError) as error:
        cause = error.cause if isinstance(error, LoadFailedError) else "bad_release"
        sentence = error.sentence if isinstance(error, LoadFailedError) else str(error)
        channel.send_text(Signal.REFUSED, msgspec.json.encode(RefusedBy(cause, sentence)))
        raise SystemExit(0) from error
    session = found.session
    answer = OpenedBy(found.plan, found.reason, session.inputs, session.outputs)
    channel.send_text(Signal.OPENED, msgspec.json.encode(answer))
    return session


def serve(channel: Channel, session: Session) -> None:
    """Run what comes until the channel closes."""
    answered = int(Signal.ANSWERED)
    while True:
        _, length = channel.receive()
        try:
            channel.send(answered, session.run(channel.arrays(length)))
        except RunFailedError as error:
            channel.send_text(Signal.FAILED, str(error).encode())


def _serve_until_closed(channel: Channel, session: Session) -> None:
    try:
        serve(channel, session)
    except ChannelClosedError:
        os._exit(0)  # the worker is gone or wants no more: nothing here is worth an orderly end


def _channel(descriptors: str) -> Channel:
    own, into, out = (int(number) for number in descriptors.split(":"))
    return Channel(socket.socket(fileno=own), Arena(out), Arena(into))


def main() -> None:
    """Run until the first socket closes."""
    parser = argparse.ArgumentParser(prog="landreeve-model")
    parser.add_argument("--channels", required=True, help="inherited descriptors: socket, requests, answers")
    parser.add_argument("--parent", type=int, required=True, help="the worker's process id")
    options = parser.parse_args()
    die_with_parent(options.parent)
    prefer_for_oom(HOST_OOM)
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the site's rows
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first, *others = [_channel(words) for words in options.channels.split(",")]
    session = opened(first)
    for channel in others:
        threading.Thread(target=_serve_until_closed, args=(channel, session), daemon=True).start()
    _serve_until_closed(first, session)


if __name__ == "__main__":
    main()
