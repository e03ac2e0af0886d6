"""What people may do to a rollout, as pure functions: a refusal is a value with its reason.

A command given again answers the same and does nothing again: a rollout that is paused stays paused. ``next`` and
``retry`` are told apart by their key (`Asked.key`), ``next`` also by the wave it names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from msgspec.structs import replace

from landreeve_hub.rollout.back import aborted, stop
from landreeve_hub.rollout.gates import blamed, failures, silent
from landreeve_hub.rollout.roster import Back, Member, Outcome
from landreeve_hub.rollout.state import FINAL, Order, Refused, Rollout, State

Commanded = tuple[Rollout, tuple[Order, ...]] | Refused
MOST_KEYS = 64
RETRIED = (Outcome.FAILED, Outcome.SILENT, Outcome.EXCLUDED)
_JUDGED = frozenset({"no_proof", "no_figures", "wave_late", "error_rate", "latency", "drift", "accuracy"})


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, when, and ``key``, by which a repeat of this very command is known. ``wave`` (from 1) is the one that
    `advance` is to begin, 0 the next one; ``devices`` those to try again, none meaning all."""

    actor: str
    now: datetime
    key: str = ""
    wave: int = 0
    devices: tuple[str, ...] = ()


def obey(rollout: Rollout, verb: str, asked: Asked) -> Commanded:
    """The rollout after the command; the very same object when it was obeyed before."""
    if asked.key and asked.key in rollout.keys:
        return rollout, ()
    answer = COMMANDS[verb](rollout, asked)
    if isinstance(answer, Refused) or answer[0] is rollout or not asked.key:
        return answer
    after, orders = answer
    return replace(after, keys=(*after.keys, asked.key)[-MOST_KEYS:]), orders


def approve(rollout: Rollout, asked: Asked) -> Commanded:
    """Approved: the first wave may begin. Who may approve is `landreeve_hub.access.separation`'s matter."""
    if rollout.state is State.RUNNING:
        return rollout, ()
    if rollout.state not in {State.DRAFT, State.AWAITING_APPROVAL}:
        return _refused(rollout, "approve", "it is not waiting for approval")
    text = f"Approved by {asked.actor}."
    return replace(rollout, state=State.RUNNING, wave_since=asked.now, cause="approved", sentence=text), ()


def pause(rollout: Rollout, asked: Asked) -> Commanded:
    """No further orders; devices under way go on."""
    if rollout.state is State.PAUSED:
        return rollout, ()
    if rollout.state is not State.RUNNING:
        return _refused(rollout, "pause", "it is not running")
    return replace(rollout, state=State.PAUSED, cause="paused", sentence=f"Paused by {asked.actor}."), ()


def resume(rollout: Rollout, asked: Asked) -> Commanded:
    """Goes on in spite of what paused it; what is known until now is accepted, what comes later counts again."""
    if rollout.state is State.RUNNING:
        return rollout, ()
    if rollout.state is not State.PAUSED:
        return _refused(rollout, "resume", "it is not paused")
    resumed = replace(
        rollout,
        state=State.RUNNING,
        cause="resumed",
        sentence=f"Resumed by {asked.actor}.",
        accepted_failures=len(failures(rollout)),
        accepted_silent=len(silent(rollout)),
        accepted_blamed=len(blamed(rollout)),
        accepted_waves=rollout.wave + 1 if rollout.cause in _JUDGED else rollout.accepted_waves,
        wave_since=asked.now,
    )
    return resumed, ()


def advance(rollout: Rollout, asked: Asked) -> Commanded:
    """The next wave begins now; the limit in flight and the failure threshold still hold."""
    if rollout.state is not State.RUNNING:
        return _refused(rollout, "next", "it is not running")
    if asked.wave and rollout.wave + 1 >= asked.wave:
        return rollout, ()
    if rollout.wave >= rollout.members.last_wave:
        return _refused(rollout, "next", "it is in its last wave")
    text = f"{asked.actor} began wave {rollout.wave + 2} early."
    return replace(rollout, wave=rollout.wave + 1, wave_since=asked.now, cause="next", sentence=text), ()


def abort(rollout: Rollout, asked: Asked) -> Commanded:
    """Ends it here: who committed keeps the release, who is still on the way returns, nobody else is ordered."""
    if rollout.state is State.ABORTED:
        return rollout, ()
    if rollout.kind == "return":
        return _refused(rollout, "abort", "it is a way back; start a rollout of the version wanted instead")
    if rollout.state in FINAL or rollout.state is State.ROLLING_BACK:
        return _refused(rollout, "abort", "it has ended or is already going back")
    stopped, orders = stop(rollout, "aborted", f"Aborted by {asked.actor}.", asked.now, keep_committed=True)
    return aborted(stopped), orders


def roll_back(rollout: Rollout, asked: Asked) -> Commanded:
    """Every device that was ordered goes back to its own last good release, also of a finished rollout."""
    if rollout.state in {State.ROLLING_BACK, State.ROLLED_BACK}:
        return rollout, ()
    if rollout.kind == "return":
        return _refused(rollout, "rollback", "it is a way back itself")
    if rollout.kind == "late":
        return _refused(rollout, "rollback", f"its devices go back with rollout {rollout.of}; roll that one back")
    if rollout.state in {State.DRAFT, State.AWAITING_APPROVAL}:
        return _refused(rollout, "rollback", "it has not begun; abort it instead")
    if rollout.state is State.ABORTED:
        return _refused(rollout, "rollback", "it was aborted; start a rollout of the version wanted instead")
    return stop(rollout, "rolled_back", f"Rolled back by {asked.actor}.", asked.now)


def retry(rollout: Rollout, asked: Asked) -> Commanded:
    """Devices that failed, fell silent or were left out are tried again in this rollout."""
    if rollout.state not in {State.RUNNING, State.PAUSED, State.FINISHED}:
        return _refused(rollout, "retry", "it does not stand; start a new rollout of the version")
    chosen = [m for m in rollout.members.of(*RETRIED) if not asked.devices or {m.device, m.site} & set(asked.devices)]
    if rollout.kind == "return":
        chosen = [m for m in chosen if m.outcome is not Outcome.SILENT]  # its order stands
    if not chosen:
        return rollout, ()
    again = rollout.members.put([_again(member, asked.now) for member in chosen])
    text = f"{asked.actor} tries {len(chosen)} of {len(rollout.members)} devices again."
    standing = replace(rollout, members=again)
    left = len(blamed(standing))
    return replace(
        standing,
        state=State.RUNNING if rollout.state is State.FINISHED else rollout.state,
        cause="retry",
        sentence=text,
        finished=None,
        # What is tried again is accepted no more; what was accepted and is not tried again still is.
        accepted_failures=min(rollout.accepted_failures, len(failures(standing))),
        accepted_silent=min(rollout.accepted_silent, len(silent(standing))),
        accepted_blamed=None if rollout.accepted_blamed is None else min(rollout.accepted_blamed, left),
    ), ()


def _again(member: Member, now: datetime) -> Member:
    return replace(
        member,
        outcome=Outcome.WAITING,
        back=Back.NO,
        attempt=member.attempt + 1,
        stage="",
        heard=None,
        cause="retry",
        sentence="",
        told=None,
        due_since=now,
    )


PASSIVE = {
    "approve": "be approved",
    "pause": "be paused",
    "resume": "be resumed",
    "next": "begin another wave",
    "abort": "be aborted",
    "rollback": "be rolled back",
    "retry": "be tried again",
}


def _refused(rollout: Rollout, verb: str, why: str) -> Refused:
    return Refused(f"rollout {rollout.id} cannot {PASSIVE[verb]}: {why} (it is {rollout.state.value})")


COMMANDS: dict[str, Callable[[Rollout, Asked], Commanded]] = {
    "approve": approve,
    "pause": pause,
    "resume": resume,
    "next": advance,
    "abort": abort,
    "rollback": roll_back,
    "retry": retry,
}
