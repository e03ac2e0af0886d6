"""One repository state as signed bytes: lists of targets, the snapshot over them, the timestamp over that."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from landreeve.trust.client import MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES
from landreeve.trust.document import ISSUED_FIELD
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from landreeve_hub.signing.errors import SigningError

FRESH_LIFETIME = timedelta(days=14)
DIRECTOR_LIFETIME = timedelta(days=30)
TARGETS_LIFETIME = timedelta(days=365)
AHEAD = timedelta(hours=1)
"""What is valid for longer than its lifetime and this was signed by a clock that was ahead."""
TIMESTAMP_FILE = "timestamp.json"
SIGNATURES_BYTES = 16_384
"""Room left in a list for the signatures that are still to come."""
S = TypeVar("S", Targets, Snapshot, Timestamp)


def sign_targets(targets: Targets, signer: Signer) -> bytes:
    """The targets metadata with its signature."""
    return _sign(targets, signer)


def sign_freshness(
    lists: Mapping[str, tuple[int, bytes]], version: int, signer: Signer, now: datetime
) -> dict[str, str]:
    """Snapshot and timestamp of that ``version`` over the lists (version and bytes by role), by file name.

    Both carry length and hash of what they cover, so pieces of two states never fit together. `SigningError` for
    what devices would refuse for its size.
    """
    for role, (_, data) in lists.items():
        check_size(role, len(data))
    snapshot = Snapshot(
        version=version,
        expires=now + FRESH_LIFETIME,
        meta={f"{role}.json": MetaFile.from_data(v, data, ["sha256"]) for role, (v, data) in lists.items()},
    )
    snapshot_bytes = _sign(snapshot, signer)
    if len(snapshot_bytes) > MAX_SNAPSHOT_BYTES:
        raise SigningError(f"{len(lists)} lists are more than devices take: use fewer roles for approvals")
    timestamp = Timestamp(
        version=version,
        expires=now + FRESH_LIFETIME,
        snapshot_meta=MetaFile.from_data(version, snapshot_bytes, ["sha256"]),
        unrecognized_fields={ISSUED_FIELD: now.isoformat()},
    )
    return {f"{version}.snapshot.json": snapshot_bytes.decode(), TIMESTAMP_FILE: _sign(timestamp, signer).decode()}


def check_size(role: str, size: int) -> None:
    """`SigningError` for a list that devices would refuse for its size in bytes."""
    if size > MAX_TARGETS_BYTES:
        raise SigningError(
            f"the list {role} would have {size:,} bytes, devices take {MAX_TARGETS_BYTES:,}: withdraw releases "
            "that no site needs any more, or give models a role of their own (keys require)"
        )


def is_due(expires: datetime, lifetime: timedelta, now: datetime) -> bool:
    """Whether metadata should be signed anew: half of its life is over, or a clock that was ahead signed it."""
    return expires - now < lifetime / 2 or expires - now > lifetime + AHEAD


def _sign(signed: S, signer: Signer) -> bytes:
    metadata = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes()
