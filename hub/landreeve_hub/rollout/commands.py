"""What people may do to a rollout, as pure functions: a refusal is a value with its reason."""

from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from landreeve_hub.rollout.machine import failures, settled, silent, start_return
from landreeve_hub.rollout.state import FINAL, Order, Refused, Rollout, State

Commanded = tuple[Rollout, tuple[Order, ...]] | Refused


def approve(rollout: Rollout, actor: str, now: datetime) -> Commanded:
    """Approved: the first wave may begin. Who may approve is `landreeve_hub.access.separation`'s matter."""
    if rollout.state not in {State.DRAFT, State.AWAITING_APPROVAL}:
        return _refused(rollout, "approve", "it is not waiting for approval")
    text = f"Approved by {actor}."
    return replace(rollout, state=State.RUNNING, wave_since=now, cause="approved", sentence=text), ()


def pause(rollout: Rollout, actor: str, _now: datetime) -> Commanded:
    if rollout.state is not State.RUNNING:
        return _refused(rollout, "pause", "it is not running")
    return replace(rollout, state=State.PAUSED, cause="paused", sentence=f"Paused by {actor}."), ()


def resume(rollout: Rollout, actor: str, now: datetime) -> Commanded:
    """Goes on in spite of what paused it; what is known until now is accepted, what comes later counts again."""
    if rollout.state is not State.PAUSED:
        return _refused(rollout, "resume", "it is not paused")
    resumed = replace(
        rollout,
        state=State.RUNNING,
        cause="resumed",
        sentence=f"Resumed by {actor}.",
        accepted_failures=len(failures(rollout)),
        accepted_silent=len(silent(rollout)),
        accepted_waves=rollout.wave + 1 if rollout.cause == "no_proof" else rollout.accepted_waves,
        wave_since=now,
    )
    return resumed, ()


def advance(rollout: Rollout, actor: str, now: datetime) -> Commanded:
    """The next wave begins now; the limit in flight and the failure threshold still hold."""
    if rollout.state is not State.RUNNING:
        return _refused(rollout, "next", "it is not running")
    if rollout.wave >= max(m.wave for m in rollout.members):
        return _refused(rollout, "next", "it is in its last wave")
    text = f"{actor} began wave {rollout.wave + 2} early."
    return replace(rollout, wave=rollout.wave + 1, wave_since=now, cause="next", sentence=text), ()


def abort(rollout: Rollout, actor: str, _now: datetime) -> Commanded:
    """Ends it here: who committed keeps the release, who is still on the way returns, nobody else is ordered."""
    if rollout.state in FINAL or rollout.state is State.ROLLING_BACK:
        return _refused(rollout, "abort", "it has ended or is already going back")
    stopped, orders = start_return(rollout, "aborted", f"Aborted by {actor}.", keep_committed=True)
    members = tuple(settled(m) for m in stopped.members)
    return replace(stopped, state=State.ABORTED, members=members), orders


def roll_back(rollout: Rollout, actor: str, _now: datetime) -> Commanded:
    """Every device that was ordered goes back to its own last good release, also of a finished rollout."""
    if rollout.state in {State.DRAFT, State.AWAITING_APPROVAL}:
        return _refused(rollout, "rollback", "it has not begun; abort it instead")
    if rollout.state in {State.ROLLING_BACK, State.ROLLED_BACK}:
        return _refused(rollout, "rollback", "it already goes back")
    return start_return(rollout, "rolled_back", f"Rolled back by {actor}.")


def _refused(rollout: Rollout, verb: str, why: str) -> Refused:
    return Refused(f"rollout {rollout.id} cannot {verb}: {why} (it is {rollout.state.value})")


COMMANDS: dict[str, Callable[[Rollout, str, datetime], Commanded]] = {
    "approve": approve,
    "pause": pause,
    "resume": resume,
    "next": advance,
    "abort": abort,
    "rollback": roll_back,
}
