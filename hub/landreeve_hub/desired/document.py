"""What a device should run, as a value: composed from its assignments, compared by content."""

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from landreeve.wire.messages import Desired, DesiredModel, Probation
from landreeve.wire.schedule import LineRules


def compose(  # noqa: PLR0917  what a document is made of
    device: str,
    generation: int,
    assignments: Iterable[DesiredModel],
    rate: float | None,
    now: datetime,
    authorities: tuple[str, ...] = (),
    line: LineRules | None = None,
) -> Desired:
    """The document of that generation; models are ordered by name, so equal content gives equal bytes.

    ``rate`` is the most facts per second the device may send, None for no limit; ``authorities`` are whom it should
    trust, in PEM, empty for those it learnt at enrolment; ``line`` what its line may carry, None for its own rules.
    """
    return Desired(
        device=device,
        generation=generation,
        issued=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        models=tuple(sorted(assignments, key=lambda model: model.model)),
        max_facts_per_s=rate,
        authorities=authorities,
        line=line,
    )


def content_hash(
    assignments: Iterable[DesiredModel],
    rate: float | None,
    authorities: tuple[str, ...] = (),
    line: LineRules | None = None,
) -> str:
    """A digest of everything that is ordered; a new generation is due exactly when it changes.

    Hints order nothing: a plan found elsewhere while a device is at work must not interrupt it. What is not given
    (None) is left out, so that a field which a newer hub knows makes no new generation where it is not used.
    """
    ordered = [_ordered(model) for model in sorted(assignments, key=lambda model: model.model)]
    # Fleets that never rolled their authority keep the digests, and so the generations, that they have.
    content: tuple[object, ...] = (ordered, rate, authorities) if authorities else (ordered, rate)
    if line is not None:
        content = (ordered, rate, authorities, line)
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()


def _ordered(model: DesiredModel) -> dict[str, Any]:
    """What is ordered of one model, as it counts: of fields that came later only what is not their default."""
    values = msgspec.to_builtins(model)
    plain = msgspec.to_builtins(Probation())
    values["probation"] = {k: v for k, v in values["probation"].items() if k in _FIRST_PROBATION or v != plain[k]}
    return {name: value for name, value in values.items() if name != "hints" and value is not None}


_FIRST_PROBATION = frozenset(
    ("min_rows", "min_labelled", "max_rows", "max_s", "max_error_rate", "max_latency_ratio", "max_log_loss_increase")
) | {"alpha"}
