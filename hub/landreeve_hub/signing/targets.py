"""The targets repository: which releases approvers have signed, whoever may run them.

Files under ``metadata/targets``; ``timestamp.json`` is written last and decides which state is in force, so a
crash leaves the former one.
"""

import threading
from datetime import datetime
from pathlib import Path

from landreeve.blobs.durable import write_durably
from landreeve.trust.document import release_name
from landreeve.wire.ids import check_digest, check_id
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp

from landreeve_hub.signing.chain import FRESH_LIFETIME, TARGETS_LIFETIME, TIMESTAMP_FILE, sign_freshness, sign_targets
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.signing.keyfolder import DIRECTOR_KEY, TARGETS_KEY, KeyFolder
from landreeve_hub.signing.roots import TARGETS, repository_folder, root_files


class TargetsRepository:
    """The approvers' list under a hub's state folder (after `landreeve_hub.signing.roots.init`).

    Thread-safe within one process; reading needs no key.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = repository_folder(state, TARGETS)
        self._keys = KeyFolder(state)
        self._lock = threading.RLock()

    def add_release(  # noqa: PLR0917  the order in which a release is spoken of everywhere
        self, digest: str, length: int, model: str, version: str, approved_by: str, now: datetime
    ) -> None:
        """Sign a release (sha256 and length of its manifest). The same again changes nothing; `SigningError`
        when the digest is listed with other facts."""
        target = _target(digest, length, {"model": check_id(model), "version": check_id(version)}, approved_by, now)
        with self._lock:
            targets = self._targets()
            known = targets.targets.get(target.path)
            if known is None:
                targets.targets[target.path] = target
                self._sign(targets, now)
            elif _facts(known) != _facts(target):
                raise SigningError(f"release {digest[:12]} is already signed as {_facts(known)}; withdraw it first")

    def remove_release(self, digest: str, now: datetime) -> None:
        """Withdraw a release: no device installs it from now on. Unknown ones are ignored."""
        with self._lock:
            targets = self._targets()
            if targets.targets.pop(release_name(digest), None) is not None:
                self._sign(targets, now)

    def releases(self) -> dict[str, int]:
        """Signed releases: sha256 of the manifest to its length in bytes."""
        with self._lock:
            return {target.hashes["sha256"]: target.length for target in self._targets().targets.values()}

    def metadata(self) -> dict[str, str]:
        """Every file a device needs to verify the state in force, by name."""
        with self._lock:
            timestamp = self._timestamp()
            names = (*self._names(timestamp), TIMESTAMP_FILE)
            return root_files(self._state, TARGETS) | {name: (self._folder / name).read_text() for name in names}

    def refresh(self, now: datetime) -> bool:
        """Sign anew what has used half of its life; whether anything was.

        The list itself needs the approvers' key: without it here, only snapshot and timestamp are renewed.
        """
        with self._lock:
            if not (self._folder / TIMESTAMP_FILE).exists():
                self._sign(Targets(), now)
                return True
            if self._targets().expires - now < TARGETS_LIFETIME / 2 and self._keys.has(TARGETS_KEY):
                self._sign(self._targets(), now)
                return True
            if self._timestamp().expires - now < FRESH_LIFETIME / 2:
                self._sign_freshness(now)
                return True
            return False

    def resign(self, now: datetime) -> None:
        """Sign everything with the keys in force: after a key has been replaced."""
        with self._lock:
            self._sign(self._targets(), now)

    def _sign(self, targets: Targets, now: datetime) -> None:
        in_force = (self._folder / TIMESTAMP_FILE).exists()
        targets.version = self._targets().version + 1 if in_force else 1
        targets.expires = now + TARGETS_LIFETIME
        data = sign_targets(targets, self._keys.load(TARGETS_KEY))
        write_durably(self._folder / f"{targets.version}.targets.json", data)
        self._put_in_force(data, targets.version, self._timestamp().version + 1 if in_force else 1, now)

    def _sign_freshness(self, now: datetime) -> None:
        version = self._targets().version
        data = (self._folder / f"{version}.targets.json").read_bytes()
        self._put_in_force(data, version, self._timestamp().version + 1, now)

    def _put_in_force(self, targets: bytes, targets_version: int, version: int, now: datetime) -> None:
        files = sign_freshness(targets, targets_version, version, self._keys.load(DIRECTOR_KEY), now)
        timestamp = files.pop(TIMESTAMP_FILE)
        for name, text in files.items():
            write_durably(self._folder / name, text.encode())
        write_durably(self._folder / TIMESTAMP_FILE, timestamp.encode())
        self._forget_former({*files, f"{targets_version}.targets.json"})

    def _forget_former(self, keep: set[str]) -> None:
        for pattern in ("*.targets.json", "*.snapshot.json"):
            for file in self._folder.glob(pattern):
                if file.name not in keep:
                    file.unlink()

    def _names(self, timestamp: Timestamp) -> tuple[str, str]:
        """File names of the snapshot in force and of its targets."""
        snapshot_name = f"{timestamp.snapshot_meta.version}.snapshot.json"
        snapshot = Metadata[Snapshot].from_file(str(self._folder / snapshot_name)).signed
        return snapshot_name, f"{snapshot.meta['targets.json'].version}.targets.json"

    def _timestamp(self) -> Timestamp:
        return Metadata[Timestamp].from_file(str(self._folder / TIMESTAMP_FILE)).signed

    def _targets(self) -> Targets:
        if not (self._folder / TIMESTAMP_FILE).exists():
            raise SigningError(f"there is no signed list in {self._folder}; run `landreeve-hub init` first")
        return Metadata[Targets].from_file(str(self._folder / self._names(self._timestamp())[1])).signed


def _target(digest: str, length: int, name: dict[str, str], approved_by: str, now: datetime) -> TargetFile:
    custom = {**name, "approved_by": approved_by, "approved": now.isoformat()}
    return TargetFile(length, {"sha256": check_digest(digest)}, release_name(digest), {"custom": custom})


def _facts(target: TargetFile) -> str:
    return f"{target.custom['model']} {target.custom['version']} of {target.length} bytes"
