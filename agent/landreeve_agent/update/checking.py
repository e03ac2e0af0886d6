"""What makes an order one that cannot be carried out here, before anything is fetched. Pure."""

from collections.abc import Collection, Mapping

from landreeve.wire.schedule import fault_of_schedule
from landreeve.wire.strategy import fault_of

from landreeve_agent.update.holding import fault_of_order
from landreeve_agent.update.machine import Accepted, Failed, Outcome
from landreeve_agent.update.standing import MODEL, Order, State


def check(order: Order, kinds: Collection[str], others: Mapping[str, State], bad: str | None) -> Outcome:
    """Accepted, or what is wrong. ``kinds`` are the components this agent updates; ``bad`` is the rollout under which
    the release was found bad here, if any."""
    version = order.version
    if order.signed_bytes != order.manifest_bytes:
        text = f"Version {version} is not signed by both trust repositories with this length."
        return Failed(order.generation, "not_approved", text)
    if order.component not in kinds:
        text = f"This agent cannot update a component of kind {order.component[:40]!r}."
        return Failed(order.generation, "unknown_component", text)
    fault = fault_of(order.strategy)
    if not fault and order.component != MODEL and order.strategy.kind != "direct":
        fault = f"kind: only a model shares its traffic, and this is {order.component}"
    if fault:
        return Failed(order.generation, "bad_strategy", f"The strategy cannot be carried out: {fault}.")
    if fault := fault_of_order(order, others):
        return Failed(order.generation, "bad_order", f"The order among components cannot be kept: {fault}.")
    fault = fault_of_schedule(order.schedule) if order.schedule else ""
    if fault:
        return Failed(order.generation, "bad_schedule", f"The windows cannot be kept: {fault}.")
    if bad is not None and bad == order.rollout and not order.rollback:
        text = f"Version {version} was found bad here under this very rollout; a new rollout may retry it."
        return Failed(order.generation, "quarantined", text)
    return Accepted(order.generation)
