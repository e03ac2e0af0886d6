"""What the site's windows hold back. Pure."""

from datetime import datetime
from zoneinfo import ZoneInfo

from landreeve.wire.schedule import DayWindow, is_open, next_open

from landreeve_agent.update.machine import Effect
from landreeve_agent.update.standing import Order

_DOING = {Effect.FETCH: "fetched", Effect.ACTIVATE: "activated"}


def held(effect: Effect, order: Order, now: datetime) -> str:
    """Why the effect must not begin now, and until when; empty when it may. A return is never held back."""
    windows = _windows(effect, order)
    if order.schedule is None or is_open(windows, order.schedule.zone, now):
        return ""
    opens = next_open(windows, order.schedule.zone, now).astimezone(ZoneInfo(order.schedule.zone))
    return f"Version {order.version} is {_DOING[effect]} from {opens:%a %H:%M} on ({order.schedule.zone})."


def _windows(effect: Effect, order: Order) -> tuple[DayWindow, ...]:
    if order.schedule is None or order.rollback:
        return ()
    return {Effect.FETCH: order.schedule.download, Effect.ACTIVATE: order.schedule.activate}.get(effect, ())
