"""How a worker ended, and which versions that speaks against. Pure.

A worker holds every model of the box, so its death says little by itself: what counts is which version was in native
code at that moment (`landreeve_agent.serving.recorder`). The stack of the thread that died narrows it down where there
is one.
"""

import hashlib
from dataclasses import dataclass

import msgspec

HUNG = "hung"
CRASH_LOOP = "crash_loop"
# What a process does to itself. SIGKILL and SIGTERM come from outside: memory has ended, or a person has ended it.
_FAULTS = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"})
_MOST_NAMED = 3


class Running(msgspec.Struct, frozen=True):
    """A version with a run under way, or, ``loading``, with its opening and first runs."""

    model: str
    version: str
    release: str = ""
    loading: bool = False

    @property
    def name(self) -> str:
        """Model and version."""
        return f"{self.model} {self.version}"

    @property
    def mark(self) -> str:
        """How a stack names its runs.

        >>> Running("delay", "2.0.0").mark
        '470276ec0a50'
        """
        return hashlib.blake2b(msgspec.json.encode(self), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Marks:
    """What was under way when a worker ended: each version with the thread it was in. ``main`` is the thread of the
    event loop, 0 if not known; ``died`` the mark of the run that received the signal, empty if not known."""

    under_way: tuple[tuple[Running, int], ...] = ()
    main: int = 0
    died: str = ""


NOTHING = Marks()


@dataclass(frozen=True, slots=True)
class Ending:
    """An unexpected end: ``how`` the process ended, the ``count`` of them so far, and what was ``running``, as far as
    known.

    ``suspects`` are the versions it speaks against; none: it speaks against whatever is new. From a ``looping`` one on
    the worker goes on by simpler plans.
    """

    how: str
    count: int
    running: tuple[Running, ...] = ()
    suspects: tuple[Running, ...] = ()
    looping: bool = False

    @property
    def cause(self) -> str:
        """What is told of it: ``crash_loop``, once, when ends follow one another."""
        return CRASH_LOOP if self.looping else self.how

    @property
    def during(self) -> str:
        """In words what was running; empty when that is not known.

        >>> Ending("signal SIGSEGV", 1, (Running("delay", "2.0.0"),)).during
        ' while delay 2.0.0 was running'
        """
        return f" while {_words(self.running)}" if self.running else ""


def ending(how: str, count: int, marks: Marks, *, looping: bool = False) -> Ending:
    """What an end means. ``how`` the process ended is ``signal SIGSEGV``, ``exit 1 (last words)`` or ``hung``.

    >>> marks = Marks(((Running("a", "1"), 7), (Running("b", "2"), 8)), main=5, died=Running("b", "2").mark)
    >>> [one.name for one in ending("signal SIGSEGV", 1, marks).suspects]
    ['b 2']
    >>> ending("signal SIGKILL", 1, marks).suspects
    ()
    """
    hung = how == HUNG
    running = (_that_may_hang(marks) if hung else _that_died(marks)) or _all(marks)
    return Ending(how, count, running, running if hung or _is_own_fault(how) else (), looping)


def of_own_process(model: str, version: str, cause: str, count: int) -> Ending:
    """The end of one version's own process: it speaks against that version, however it ended.

    >>> of_own_process("delay", "2.0.0", "signal SIGKILL", 1).suspects[0].name
    'delay 2.0.0'
    """
    its = (Running(model, version),)
    return Ending(f"{model}: {cause}", count, its, its)


def _that_died(marks: Marks) -> tuple[Running, ...]:
    """Nothing when it was a thread of a runtime's own: that has no stack of ours."""
    return tuple(dict.fromkeys(one for one, _ in marks.under_way if one.mark == marks.died))


def _that_may_hang(marks: Marks) -> tuple[Running, ...]:
    """Loads, which may hold a change of routes up, and what runs on the event loop, which then answers nothing. A run
    in another thread holds neither up."""
    return tuple(dict.fromkeys(one for one, its in marks.under_way if one.loading or its == marks.main))


def _all(marks: Marks) -> tuple[Running, ...]:
    return tuple(dict.fromkeys(one for one, _ in marks.under_way))


def _is_own_fault(how: str) -> bool:
    kind, _, rest = how.partition(" ")
    return kind == "exit" or (kind == "signal" and rest in _FAULTS)


def _words(running: tuple[Running, ...]) -> str:
    """Runs first, then loads.

    >>> _words((Running("a", "1"), Running("b", "2"), Running("c", "3", loading=True)))
    'a 1 and b 2 were running and c 3 was being loaded'
    """
    runs = [one.name for one in running if not one.loading]
    loads = [one.name for one in running if one.loading]
    said = [_said(names, what) for names, what in ((runs, "running"), (loads, "being loaded")) if names]
    return " and ".join(said)


def _said(names: list[str], what: str) -> str:
    shown = names[:_MOST_NAMED]
    more = [f"{len(names) - len(shown)} more"] if len(names) > len(shown) else []
    *first, last = [*shown, *more]
    listed = f"{', '.join(first)} and {last}" if first else last
    return f"{listed} {'was' if len(names) == 1 else 'were'} {what}"
