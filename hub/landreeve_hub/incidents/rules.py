"""Which facts of a device are an incident, in plain words. Pure."""

from dataclasses import dataclass, field
from typing import Any

from landreeve.wire.messages import Body, DriftReport, Event, UpdateReport

UNTRUSTED_CAUSES = ("signature", "untrusted", "expired", "metadata", "digest_mismatch", "wrong_device")


@dataclass(frozen=True, slots=True)
class Raise:
    """An incident to open; ``key`` makes a repeat harmless."""

    key: str
    kind: str
    severity: str
    cause: str
    sentence: str
    subject: dict[str, Any] = field(default_factory=dict)


def incident_of(body: Body, device: str, site: str) -> Raise | None:
    """The incident a fact amounts to, or None. A failed update within a rollout is the rollout's own incident."""
    match body:
        case DriftReport() if body.verdict == "quality_lost":
            return _quality(body, device, site)
        case UpdateReport() if body.state == "ROLLBACK_FAILED":
            return _stuck(body, device, site)
        case UpdateReport() if body.state == "REJECTED" and body.cause == "corrupt_artifact":
            return _damaged(body, device, site)
        case UpdateReport() if body.state == "REJECTED" and _untrusted(body.cause):
            return _signature(_Doubt(body.model, body.rollout, body.cause, body.sentence), device, site)
        case Event() if body.name == "update.refused":
            return _signature(_Doubt("", body.subject, body.cause, body.sentence), device, site)
        case Event() if body.name == "audit.refused":
            return _refused_by_witness(body, device, site)
        case _:
            return None


def _untrusted(cause: str) -> bool:
    return any(word in cause for word in UNTRUSTED_CAUSES)


def _damaged(body: UpdateReport, device: str, site: str) -> Raise:
    text = (
        f"{body.model} {body.version} reached {site} damaged, again and again: {body.sentence} What the hub keeps "
        "of it is most likely damaged; pushing the same release again mends it, and tells nothing against the release."
    )
    subject = {"device": device, "site": site, "model": body.model, "version": body.version, "release": body.release}
    return Raise(f"artifact:{body.release}", "artifact_damaged", "error", body.cause, text, subject)


def _quality(body: DriftReport, device: str, site: str) -> Raise:
    text = (
        f"{body.model} {body.version} predicts worse at {site} than it promised: {body.sentence} "
        "It keeps serving; the hub decides whether to train a challenger."
    )
    subject = {"device": device, "site": site, "model": body.model, "version": body.version, "window": body.window}
    return Raise(
        f"quality:{device}:{body.model}:{body.release}", "quality_lost", "warning", "quality_lost", text, subject
    )


def _stuck(body: UpdateReport, device: str, site: str) -> Raise:
    text = (
        f"{site} could neither take {body.model} {body.version} nor go back: {body.sentence} Someone must look at it."
    )
    subject = {"device": device, "site": site, "model": body.model, "rollout": body.rollout}
    return Raise(f"stuck:{device}:{body.model}:{body.rollout}", "rollback_failed", "error", body.cause, text, subject)


@dataclass(frozen=True, slots=True)
class _Doubt:
    model: str
    order: str
    cause: str
    sentence: str


def _signature(doubt: _Doubt, device: str, site: str) -> Raise:
    text = (
        f"{site} refused an order because it could not believe it: {doubt.sentence} It goes on with what it has. "
        "If this is no expired signature, someone may have tampered with the order on its way."
    )
    subject = {"device": device, "site": site, "model": doubt.model}
    key = f"signature:{device}:{doubt.model}:{doubt.order}:{doubt.cause}"
    return Raise(key, "signature_rejected", "error", doubt.cause, text, subject)


def _refused_by_witness(body: Event, device: str, site: str) -> Raise:
    text = (
        f"{site} refuses this hub's audit log: {body.sentence} If the hub was restored from a backup, say so to the "
        "sites (landreeve audit trust); if not, entries were changed or taken away."
    )
    subject = {"device": device, "site": site, **{name: str(body.data.get(name, "")) for name in ("seen", "offered")}}
    return Raise(f"audit:hub:{body.cause}:{device}", "audit_log_refused", "error", body.cause, text, subject)


def refused_log(device: str, site: str, cause: str, sentence: str, evidence: dict[str, str]) -> Raise:
    """The incident of a site's audit log that the hub refuses; ``evidence`` is both notes."""
    text = (
        f"The audit log of {site} is not the one this hub has seen: {sentence} If the box was restored from a backup, "
        f"say so (landreeve-hub audit trust {device}); if not, entries were changed or taken away."
    )
    subject = {"device": device, "site": site, **evidence}
    return Raise(f"audit:{device}:{cause}", "audit_log_refused", "error", cause, text, subject)


def broken_log(sentence: str) -> Raise:
    """The incident of the hub's own audit log that did not grow from its last checkpoint."""
    text = (
        f"The hub's audit log is not as it was written: {sentence} It is sealed no further until someone looks at it."
    )
    return Raise("audit:own", "audit_log_broken", "error", "tampered", text)


FLOODS, HOARDS, CROWDS = "floods", "hoards", "crowds"
_ACCUSED = {
    FLOODS: "sends far more messages than a box can have to say: what is beyond is not read, so that others are heard",
    HOARDS: "has the broker keep messages for ever where only its state belongs: they take the broker's memory",
    CROWDS: "keeps many connections to the broker open at once: a box needs one",
}


def accused(device: str, site: str, what: str) -> Raise:
    """The incident of a device that does what harms the others; only a program other than our agent does so."""
    text = (
        f"{site} {_ACCUSED[what]}. No agent of ours does that: look at the box, and throw it out if somebody else has "
        f"its key (landreeve-hub device revoke {device})."
    )
    return Raise(f"{what}:{device}", f"device_{what}", "error", what, text, {"device": device, "site": site})


def taken_session(victim: tuple[str, str], thief: tuple[str, str]) -> Raise:
    """The incident of a session that another identity has taken over; both as device and site."""
    text = (
        f"{thief[1]} connected to the broker under the client id of {victim[1]} and ended its connection. It reads "
        "nothing of it, and nothing is lost; but it knows an id that nobody can guess: look at both boxes, and throw "
        f"{thief[1]} out if that was not you (landreeve-hub device revoke {thief[0]})."
    )
    subject = {"device": thief[0], "site": thief[1], "victim": victim[0]}
    return Raise(f"session:{thief[0]}:{victim[0]}", "session_taken", "error", "client_id", text, subject)


CRASHES = 5
CRASHES_WITHIN_S = 600.0
_MOST_NAMED = 3
_NAME_LENGTH = 120


def crash_loop(crashes: int, event: Event, device: str, site: str) -> Raise | None:
    """The incident that so many restarts of a worker within `CRASHES_WITHIN_S` amount to; ``event`` tells of the last
    one."""
    if crashes < CRASHES:
        return None
    cause = event.cause
    text = (
        f"The inference server at {site} died {crashes} times within {CRASHES_WITHIN_S / 60:.0f} minutes "
        f"(last: {cause}{_during(event.data)}). It is started again each time; requests wait meanwhile."
    )
    return Raise(f"crash-loop:{device}", "crash_loop", "error", cause, text, {"device": device, "site": site})


def _during(data: dict[str, Any]) -> str:
    """Which versions the worker died with; nothing where the device does not know, or is too old to say."""
    running = data.get("running")
    names = [name[:_NAME_LENGTH] for name in running if isinstance(name, str)] if isinstance(running, list) else []
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return f", with {', '.join(names[:_MOST_NAMED] + more)} under way" if names else ""
