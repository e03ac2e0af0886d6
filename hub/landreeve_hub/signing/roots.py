"""Who may sign: the roots of both repositories, and their first making. Later ones come by `changes`.

Layout under the hub's state folder: ``metadata/<repository>/<n>.root.json``; the highest n is in force.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from landreeve.blobs.durable import write_durably
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, Root

from landreeve_hub.signing.keyfolder import (
    ALL_KEYS,
    DIRECTOR_KEY,
    ROOT_KEYS,
    ROOT_THRESHOLD,
    TARGETS_KEY,
    KeyFolder,
    named,
)

DIRECTOR = "director"
TARGETS = "targets"
REPOSITORIES = (DIRECTOR, TARGETS)
ROOT_LIFETIME = timedelta(days=730)
# Which key signs which role. Snapshot and timestamp only say what is newest, so the online key does in both.
ROLES = {
    DIRECTOR: {"targets": DIRECTOR_KEY, "snapshot": DIRECTOR_KEY, "timestamp": DIRECTOR_KEY},
    TARGETS: {"targets": TARGETS_KEY, "snapshot": DIRECTOR_KEY, "timestamp": DIRECTOR_KEY},
}


def repository_folder(state: Path, repository: str) -> Path:
    """Where a repository's metadata lives."""
    return state / "metadata" / repository


def init(state: Path, now: datetime) -> None:
    """Make keys and first roots where there are none.

    Keys are made only before the first root: later a missing key has been moved away on purpose.
    """
    missing = [repository for repository in REPOSITORIES if not root_versions(state, repository)]
    keys = KeyFolder(state)
    signers = {name: keys.make(name) for name in ALL_KEYS} if missing else {}
    for repository in missing:
        _write_first(state, repository, signers, now)


def newest_root(state: Path, repository: str) -> Root:
    """The root in force."""
    return Metadata[Root].from_bytes(newest_root_text(state, repository).encode()).signed


def newest_root_text(state: Path, repository: str) -> str:
    """The root in force as a device gets it at enrolment."""
    return root_text(state, repository, max(root_versions(state, repository)))


def root_text(state: Path, repository: str, version: int) -> str:
    """The root of that version."""
    return _path(state, repository, version).read_text()


def root_files(state: Path, repository: str) -> dict[str, str]:
    """Every root after the first by file name: what a device needs to follow from whichever it trusts."""
    versions = (version for version in root_versions(state, repository) if version > 1)
    return {f"{version}.root.json": root_text(state, repository, version) for version in versions}


def root_versions(state: Path, repository: str) -> tuple[int, ...]:
    """Versions of the roots there are, rising."""
    files = repository_folder(state, repository).glob("*.root.json")
    return tuple(sorted(int(file.name.partition(".")[0]) for file in files if file.name[0].isdigit()))


def next_root(root: Root, keys: tuple[Key, Key] | None, now: datetime) -> Root:
    """The root after this one, with the second key in every role that the first had; without any it is renewed."""
    if keys is not None:
        old, new = keys
        for role, entry in root.roles.items():
            if old.keyid in entry.keyids:
                root.revoke_key(old.keyid, role)
                root.add_key(new, role)
    root.version += 1
    root.expires = now + ROOT_LIFETIME
    return root


def write_root(state: Path, repository: str, text: str) -> None:
    """Put a signed root into force. May be repeated; whoever calls has verified it."""
    version = Metadata[Root].from_bytes(text.encode()).signed.version
    path = _path(state, repository, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode())


def _write_first(state: Path, repository: str, signers: Mapping[str, CryptoSigner], now: datetime) -> None:
    root = Root(version=1, expires=now + ROOT_LIFETIME, consistent_snapshot=True)
    for name in ROOT_KEYS:
        root.add_key(named(signers[name].public_key, name), "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role, name in ROLES[repository].items():
        root.add_key(named(signers[name].public_key, name), role)
    metadata = Metadata(root)
    for name in ROOT_KEYS:
        metadata.sign(signers[name], append=True)
    root.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    write_root(state, repository, metadata.to_bytes().decode())


def _path(state: Path, repository: str, version: int) -> Path:
    return repository_folder(state, repository) / f"{version}.root.json"
