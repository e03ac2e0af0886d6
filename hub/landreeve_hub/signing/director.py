"""The director: signs, for one device, what it should run.

Every device has its own targets, snapshot and timestamp under one shared root. Nothing is kept here: the
version in force is inside the last document the hub stored for the device.
"""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from landreeve.trust.document import DOCUMENT_NAME, document_text, release_name
from landreeve.wire.ids import check_digest, check_id
from landreeve.wire.messages import Desired
from tuf.api.metadata import Metadata, TargetFile, Targets, Timestamp

from landreeve_hub.signing.chain import DIRECTOR_LIFETIME, TIMESTAMP_FILE, sign_freshness, sign_targets
from landreeve_hub.signing.errors import UnapprovedReleaseError
from landreeve_hub.signing.keyfolder import DIRECTOR_KEY, KeyFolder
from landreeve_hub.signing.roots import DIRECTOR, root_files


class Director:
    """Signs with the online key under a hub's state folder."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._keys = KeyFolder(state)

    def sign(
        self, device: str, desired: Desired, release_lengths: Mapping[str, int], now: datetime, version: int = 0
    ) -> dict[str, str]:
        """The device's director metadata by file name.

        The targets' version is the document's generation. Snapshot and timestamp have ``version``, at least
        the generation: the same document signed again later needs a higher one, or devices would keep the
        expiring timestamp. ``release_lengths`` holds the bytes of every manifest the document names.
        """
        if desired.device != device:
            raise ValueError(f"the document is for {desired.device}, it cannot be signed for {device}")
        signer = self._keys.load(DIRECTOR_KEY)
        targets = _targets(desired, release_lengths, now)
        data = sign_targets(targets, signer)
        fresh = sign_freshness({"targets": (targets.version, data)}, max(version, targets.version), signer, now)
        return self.roots() | {f"{targets.version}.targets.json": data.decode()} | fresh

    def roots(self) -> dict[str, str]:
        """Every root after the first, by file name."""
        return root_files(self._state, DIRECTOR)


def timestamp_version(director: Mapping[str, str]) -> int:
    """The version of the timestamp in a device's director metadata."""
    return Metadata[Timestamp].from_bytes(director[TIMESTAMP_FILE].encode()).signed.version


def _targets(desired: Desired, release_lengths: Mapping[str, int], now: datetime) -> Targets:
    document = TargetFile.from_data(DOCUMENT_NAME, document_text(desired).encode(), ["sha256"])
    document.unrecognized_fields["custom"] = {"device": check_id(desired.device)}
    targets = {document.path: document}
    for model in desired.models:
        length = release_lengths.get(model.release)
        if length is None:
            raise UnapprovedReleaseError(
                f"release {model.release[:12]} ({model.model} {model.version}) for {desired.device} "
                "is not signed by an approver; approve it first"
            )
        name = release_name(model.release)
        targets[name] = TargetFile(length, {"sha256": check_digest(model.release)}, name)
    return Targets(version=desired.generation, expires=now + DIRECTOR_LIFETIME, targets=targets)
