"""One repository state as signed bytes: targets, the snapshot over them, the timestamp over that."""

from datetime import datetime, timedelta
from typing import TypeVar

from landreeve.trust.document import ISSUED_FIELD
from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

FRESH_LIFETIME = timedelta(days=14)
DIRECTOR_LIFETIME = timedelta(days=30)
TARGETS_LIFETIME = timedelta(days=365)
TIMESTAMP_FILE = "timestamp.json"
S = TypeVar("S", Targets, Snapshot, Timestamp)


def sign_targets(targets: Targets, signer: Signer) -> bytes:
    """The targets metadata with its signature."""
    return _sign(targets, signer)


def sign_freshness(targets: bytes, targets_version: int, version: int, signer: Signer, now: datetime) -> dict[str, str]:
    """Snapshot and timestamp of that ``version`` over the targets, by file name.

    Both carry length and hash of what they cover, so pieces of two states never fit together.
    """
    snapshot = Snapshot(
        version=version,
        expires=now + FRESH_LIFETIME,
        meta={"targets.json": MetaFile.from_data(targets_version, targets, ["sha256"])},
    )
    snapshot_bytes = _sign(snapshot, signer)
    timestamp = Timestamp(
        version=version,
        expires=now + FRESH_LIFETIME,
        snapshot_meta=MetaFile.from_data(version, snapshot_bytes, ["sha256"]),
        unrecognized_fields={ISSUED_FIELD: now.isoformat()},
    )
    return {f"{version}.snapshot.json": snapshot_bytes.decode(), TIMESTAMP_FILE: _sign(timestamp, signer).decode()}


def _sign(signed: S, signer: Signer) -> bytes:
    metadata = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes()
