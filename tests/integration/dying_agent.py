"""A real agent that dies by SIGKILL at a chosen point of an update, once: ``python dying_agent.py POINT ARGUMENTS…``.

Points: ``before:PHASE`` inside the transaction that would enter the phase, ``after:PHASE`` when it is committed and
nobody knows yet, ``begin:EFFECT`` and ``end:EFFECT`` around an effect, whose outcome is then lost.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from landreeve_agent.update import journal, runner
from landreeve_agent.update.models import ModelEffects

EFFECTS = ("fetch", "prove", "activate", "look", "direct", "clean")


def main() -> None:
    point, mark = sys.argv[1], Path(sys.argv[2])
    kind, _, name = point.partition(":")
    if point != "never" and not mark.exists():
        {"before": _before, "after": _after, "begin": _begin, "end": _end}[kind](name, mark)
    sys.argv[1:] = sys.argv[3:]
    from landreeve_agent.__main__ import main as agent

    agent()


def die(mark: Path) -> None:
    """Only once: the next start finds the mark."""
    mark.touch()
    os.sync()
    os.kill(os.getpid(), signal.SIGKILL)


def _before(phase: str, mark: Path) -> None:
    save = journal.save

    def dying(db: Any, outbox: Any, before: Any, after: Any, now: Any, **more: Any) -> None:
        save(db, outbox, before, after, now, **more)
        if after.phase == phase and before.phase != phase:
            die(mark)

    journal.save = dying


def _after(phase: str, mark: Path) -> None:
    dispatch = runner.Runner._dispatch

    async def dying(self: Any, model: str, event: Any, *more: Any) -> Any:
        state = await dispatch(self, model, event, *more)
        if state.phase == phase:
            die(mark)
        return state

    runner.Runner._dispatch = dying  # type: ignore[method-assign]


def _around(name: str, wrap: Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]) -> None:
    setattr(ModelEffects, name, wrap(getattr(ModelEffects, name)))


def _of_interest(arguments: tuple[Any, ...]) -> bool:
    """Effects of the update under test, not those of the first version or of a start."""
    state = arguments[1]
    return state.order is not None and state.good is not None and state.phase != "COMMITTED"


def _begin(name: str, mark: Path) -> None:
    def wrap(effect: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def dying(*arguments: Any) -> Any:
            if _of_interest(arguments):
                die(mark)
            return await effect(*arguments)

        return dying

    _around(name, wrap)


def _end(name: str, mark: Path) -> None:
    def wrap(effect: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def dying(*arguments: Any) -> Any:
            result = await effect(*arguments)
            if _of_interest(arguments):
                die(mark)
            return result

        return dying

    _around(name, wrap)


if __name__ == "__main__":
    main()
