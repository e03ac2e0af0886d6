"""Whether a device is there. Pure.

The broker speaks a device's last will when its connection breaks, which may be long after the device is back:
sessions are numbered, and what an older session says no longer counts.
"""

from dataclasses import dataclass

from landreeve.wire.messages import DeviceState

MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Known:
    """What the hub believes: the newest session it heard of and whether the device is online in it."""

    session: int
    online: bool


def counts(known: Known, state: DeviceState) -> bool:
    """Whether a state is news or confirms what is known; an older session's will is neither.

    >>> counts(Known(7, online=True), DeviceState(session=6, online=False, at="2026-01-01T00:00:00Z"))
    False
    """
    if state.session != known.session:
        return state.session > known.session
    # Within one session the will comes last: nothing of it brings the device back.
    return known.online or not state.online or known.session == 0


def problem(state: DeviceState) -> str:
    """What is wrong with the numbers of a state, naming the field; empty when nothing is."""
    for name, value in (("session", state.session), ("generation", state.generation), ("outbox", state.outbox)):
        if not 0 <= value <= MAX_NUMBER:
            return f"{name} {value}: expected a count from 0 to {MAX_NUMBER}"
    return ""
