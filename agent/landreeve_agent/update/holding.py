"""What is held back: by the site's windows, and by other components that come first. Pure."""

from collections.abc import Collection, Mapping
from datetime import datetime

from landreeve.wire.ordering import circle, fault_of_names
from landreeve.wire.schedule import DayWindow, is_open, next_open, place_of

from landreeve_agent.update.machine import Effect
from landreeve_agent.update.standing import TERMINAL, Order, Phase, State

_DOING = {Effect.FETCH: "fetched", Effect.ACTIVATE: "activated"}


def held(effect: Effect, order: Order, now: datetime) -> str:
    """Why the effect must not begin now, and until when; empty when it may. A return is never held back."""
    windows = _windows(effect, order)
    if order.schedule is None or is_open(windows, order.schedule.zone, now):
        return ""
    opens = next_open(windows, order.schedule.zone, now).astimezone(place_of(order.schedule.zone))
    return f"Version {order.version} is {_DOING[effect]} from {opens:%a %H:%M} on ({order.schedule.zone})."


def behind(effect: Effect, order: Order, others: Mapping[str, State]) -> str:
    """Which component the order waits for, in words; empty when it need not. A return waits for nobody."""
    if effect is not Effect.ACTIVATE or order.rollback:
        return ""
    for name in order.after:
        other = others.get(name)
        if other is not None and other.phase not in TERMINAL:
            return f"Version {order.version} waits for {name}, which is being updated itself."
    return ""


def spoilt(order: Order, others: Mapping[str, State], named: Collection[str]) -> str:
    """The component that had to come first and did not take what is ordered of it; empty when all did. ``named`` are
    the components the hub orders now: nothing is asked of another any more."""
    for name in order.after:
        other = others.get(name)
        if other is None or other.order is None or name not in named:
            continue
        if other.phase in TERMINAL and other.phase is not Phase.COMMITTED:
            return name
    return ""


def fault_of_order(order: Order, others: Mapping[str, State]) -> str:
    """Why the order among components cannot be kept; empty when it can.

    >>> one = Order("a", "0", "v", 1, "r", 1, 1, after=("a",))
    >>> fault_of_order(one, {})
    'a waits for a'
    """
    if fault := fault_of_names(order.after):
        return fault
    under_way = ((name, other.order) for name, other in others.items() if other.phase not in TERMINAL)
    after = {name: other.after for name, other in under_way if other is not None}
    return " waits for ".join(circle({**after, order.model: order.after}, order.model))


def _windows(effect: Effect, order: Order) -> tuple[DayWindow, ...]:
    if order.schedule is None or order.rollback:
        return ()
    return {Effect.FETCH: order.schedule.download, Effect.ACTIVATE: order.schedule.activate}.get(effect, ())
