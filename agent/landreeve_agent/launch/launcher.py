"""``landreeve-launch [ARGUMENTS of landreeve run]``: keeps the agent running, from the environment that is to be tried
or the last good one.

Restarted by the service manager like the agent itself; standard library only. It judges nothing but life and time: a
new agent confirms itself (`landreeve_agent.update.itself`); one that ends too often or stays silent too long is left.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from landreeve_agent.launch import slots as book
from landreeve_agent.launch.slots import BASE, LAUNCHED, RESTART_CODE, RUNNING, Slot, Slots
from landreeve_agent.launch.sockets import Keeper

POLL_S = 0.2
STOP_S = 20.0
_FOLDER = "agent"


class Launcher:
    """``python`` is the interpreter of the environment the box came with."""

    def __init__(self, state: Path, python: str, arguments: Sequence[str], stop_s: float = STOP_S) -> None:
        self._file = state / _FOLDER / book.SLOTS_FILE
        self._state = state
        self._python = python
        self._arguments = arguments
        self._stop_s = stop_s
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = 0
        self._sockets = Keeper()

    def run(self) -> int:
        """Until the agent ends for good; its exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        while True:
            slots, slot = self._next()
            tried = slots.trying is not None
            code = self._one_life(slot, slots.deadline_s if tried else None)
            if self._asked or (not tried and code != RESTART_CODE):
                # A good agent that fails is the service manager's matter; by signal 9 it is 137, as shells say.
                return code if code >= 0 else 128 - code
            if tried and code != RESTART_CODE:
                time.sleep(1.0)

    def _next(self) -> tuple[Slots, Slot]:
        """What starts now. A start that cannot be counted, on a full disk, is no start of a new agent."""
        slots, slot = book.to_start(book.read(self._file))
        if self._keep(slots):
            return slots, slot
        return replace(slots, trying=None), slots.good

    def _one_life(self, slot: Slot, deadline_s: float | None) -> int:
        """Start it, and wait for its end; past the deadline it is ended and left."""
        told = {LAUNCHED: str(os.getpid()), RUNNING: slot.release, BASE: self._python}
        environ = {**os.environ, **told, **self._sockets.environ()}
        if self._asked:
            return 0
        command = [slot.python or self._python, "-m", "landreeve_agent", "--state", str(self._state), "run"]
        try:
            self._child = subprocess.Popen(
                [*command, *self._arguments], env=environ, pass_fds=self._sockets.descriptors()
            )
        except OSError as error:
            if deadline_s is None:
                raise
            self._leave("cannot_start", f"The new agent cannot be started: {error}.")
            return RESTART_CODE
        self._sockets.let_go()
        self._forward()  # what came while the child was being made
        until = None if deadline_s is None else time.monotonic() + deadline_s
        while (code := self._child.poll()) is None:
            if until is not None and self._confirmed():
                until = None
            if until is not None and time.monotonic() > until:
                self._leave("not_confirmed", f"The new agent did not prove itself within {deadline_s:.0f} s.")
                self._end(self._child)
                self._sockets.take()
                return RESTART_CODE
            self._sockets.take()
            time.sleep(POLL_S)
        self._sockets.take()
        return code

    def _confirmed(self) -> bool:
        return book.read(self._file).trying is None

    def _leave(self, cause: str, sentence: str) -> None:
        self._keep(book.left(book.read(self._file), cause, sentence))

    def _keep(self, slots: Slots) -> bool:
        """Whether the file says so now."""
        try:
            if slots != book.read(self._file):
                book.write(self._file, slots)
        except OSError as error:
            sys.stderr.write(f"landreeve-launch: {self._file} cannot be written: {error}\n")
            return False
        return True

    def _end(self, child: "subprocess.Popen[bytes]") -> None:
        child.terminate()
        try:
            child.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._asked = number
        self._forward()

    def _forward(self) -> None:
        if self._asked and self._child is not None and self._child.poll() is None:
            self._child.send_signal(self._asked)


def main() -> None:
    """Start with the state folder of ``--state`` or ``LANDREEVE_STATE``; everything else is the agent's."""
    arguments = sys.argv[1:]
    state = os.environ.get("LANDREEVE_STATE", "/var/lib/landreeve")
    if arguments[:1] == ["--state"]:
        if len(arguments) == 1:
            sys.exit("landreeve-launch: --state needs a folder")
        state, arguments = arguments[1], arguments[2:]
    sys.exit(Launcher(Path(state), sys.executable, arguments).run())


if __name__ == "__main__":
    main()
