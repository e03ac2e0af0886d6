"""A door's process from inside: its options, its log, its end (`landreeve_agent.doors.child` keeps it)."""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import msgspec

from landreeve_agent.doors.errors import DoorError
from landreeve_agent.serving.deathsig import die_with_parent

T = TypeVar("T")


class Stop:
    """Says when the supervisor wants the door closed, or is gone."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def watch(self, fd: int) -> None:
        """Set it once that descriptor ends."""

        def read() -> None:
            while os.read(fd, 4096):
                pass
            self._event.set()

        threading.Thread(target=read, name="stdin", daemon=True).start()

    def set(self) -> None:
        """Stop now."""
        self._event.set()

    @property
    def wanted(self) -> bool:
        """Whether it is time to stop."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; whether it is time to stop."""
        return self._event.wait(seconds)


def live(kind: type[T], run: Callable[[T, Stop], None]) -> None:
    """The main of a door's process: read the options, log to stderr, run until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, help="the supervisor's process id")
    die_with_parent(parser.parse_args().parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    # Unbuffered: the watcher reads the descriptor itself, so nothing may wait in a buffer of Python's.
    with os.fdopen(0, "rb", buffering=0, closefd=False) as stdin:
        options = msgspec.json.decode(stdin.readline(), type=kind)
    stop = Stop()
    stop.watch(0)
    try:
        run(options, stop)
    except DoorError as error:
        raise SystemExit(str(error)) from error  # its last words, which the supervisor shows
