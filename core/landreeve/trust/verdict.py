"""What became of a signed document: believed, or rejected with a cause. Needs no TUF, unlike the judge (`verify`)."""

from dataclasses import dataclass
from enum import StrEnum

from landreeve.wire.messages import Desired


class Cause(StrEnum):
    """Why a document is not believed."""

    NOT_ENROLLED = "not_enrolled"
    CLOCK_BEHIND = "clock_behind"
    EXPIRED = "metadata_expired"
    DOWNGRADE = "downgrade"
    BAD_SIGNATURE = "bad_signature"
    MIX_AND_MATCH = "mix_and_match"
    MISSING = "metadata_missing"
    INVALID = "metadata_invalid"
    TAMPERED = "document_tampered"
    OTHER_DEVICE = "other_device"
    WRONG_GENERATION = "wrong_generation"
    NOT_ORDERED = "not_ordered"
    NOT_APPROVED = "not_approved"
    DISAGREEMENT = "disagreement"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Believed:
    """A document that may be acted on. ``releases`` maps a manifest's sha256 to its length in bytes, as both
    repositories state it; ``director_version`` is the generation the director signed."""

    desired: Desired
    releases: dict[str, int]
    director_version: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that must not be acted on, with its cause and one plain sentence."""

    cause: Cause
    sentence: str
