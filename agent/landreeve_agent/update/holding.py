"""What is held back: by the site's windows, and by other components that come first. Pure."""

from collections.abc import Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

from landreeve.wire.schedule import DayWindow, is_open, next_open

from landreeve_agent.update.machine import Effect
from landreeve_agent.update.standing import TERMINAL, Order, Phase, State

_DOING = {Effect.FETCH: "fetched", Effect.ACTIVATE: "activated"}


def held(effect: Effect, order: Order, now: datetime) -> str:
    """Why the effect must not begin now, and until when; empty when it may. A return is never held back."""
    windows = _windows(effect, order)
    if order.schedule is None or is_open(windows, order.schedule.zone, now):
        return ""
    opens = next_open(windows, order.schedule.zone, now).astimezone(ZoneInfo(order.schedule.zone))
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


def spoilt(order: Order, others: Mapping[str, State]) -> str:
    """The component that had to come first and did not take the order it came with; empty when all did."""
    for name in order.after:
        other = others.get(name)
        if other is None or other.order is None or other.order.rollout != order.rollout:
            continue  # nothing was asked of it together with this
        if other.phase in TERMINAL and other.phase is not Phase.COMMITTED:
            return name
    return ""


def _windows(effect: Effect, order: Order) -> tuple[DayWindow, ...]:
    if order.schedule is None or order.rollback:
        return ()
    return {Effect.FETCH: order.schedule.download, Effect.ACTIVATE: order.schedule.activate}.get(effect, ())
