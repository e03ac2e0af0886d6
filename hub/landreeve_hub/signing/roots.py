"""Who may sign: the roots of both repositories, their first making and the replacing of keys.

Layout under the hub's state folder: ``metadata/<repository>/<n>.root.json``; the highest n is in force.
"""

from datetime import datetime, timedelta
from pathlib import Path

from landreeve.blobs.durable import write_durably
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from landreeve_hub.signing.keyfolder import ALL_KEYS, DIRECTOR_KEY, ROOT_KEYS, ROOT_THRESHOLD, TARGETS_KEY, KeyFolder

DIRECTOR = "director"
TARGETS = "targets"
ROOT_LIFETIME = timedelta(days=730)
# Which key signs which role. Snapshot and timestamp only say what is newest, so the online key does in both.
_ROLES = {
    DIRECTOR: {"targets": DIRECTOR_KEY, "snapshot": DIRECTOR_KEY, "timestamp": DIRECTOR_KEY},
    TARGETS: {"targets": TARGETS_KEY, "snapshot": DIRECTOR_KEY, "timestamp": DIRECTOR_KEY},
}


def repository_folder(state: Path, repository: str) -> Path:
    """Where a repository's metadata lives."""
    return state / "metadata" / repository


def init(state: Path, now: datetime) -> None:
    """Make keys and first roots where there are none, and end a key replacement that a crash cut short.

    Keys are made only before the first root: later a missing key has been moved away on purpose.
    """
    keys = KeyFolder(state)
    for repository in (DIRECTOR, TARGETS):
        if not root_versions(state, repository):
            _write(state, repository, _first_root(repository, keys, now), keys, extra=())
    for name in ALL_KEYS:
        if keys.next(name) is not None:
            rotate(state, name, now)


def rotate(state: Path, name: str, now: datetime) -> None:
    """Replace a key by a new one in both roots. Needs two root keys on this machine (`KeyMissingError`).

    Devices follow by themselves: each new root is signed by the old threshold and by its own. What the old key
    has signed must be signed again afterwards (`TargetsRepository.resign`, `Publisher.refresh`).
    May be repeated after a crash.
    """
    keys = KeyFolder(state)
    old, new = keys.load(name), keys.make_next(name)
    for repository in (DIRECTOR, TARGETS):
        root = newest_root(state, repository)
        if old.public_key.keyid in root.keys:
            _replace(root, old, new)
            root.version += 1
            root.expires = now + ROOT_LIFETIME
            _write(state, repository, root, keys, extra=(new,))
    keys.promote(name)


def newest_root(state: Path, repository: str) -> Root:
    """The root in force."""
    version = max(root_versions(state, repository))
    return Metadata[Root].from_file(str(_path(state, repository, version))).signed


def newest_root_text(state: Path, repository: str) -> str:
    """The root in force as a device gets it at enrolment."""
    return _path(state, repository, max(root_versions(state, repository))).read_text()


def root_files(state: Path, repository: str) -> dict[str, str]:
    """Every root after the first by file name: what a device needs to follow from whichever it trusts."""
    versions = (version for version in root_versions(state, repository) if version > 1)
    return {f"{version}.root.json": _path(state, repository, version).read_text() for version in versions}


def root_versions(state: Path, repository: str) -> tuple[int, ...]:
    """Versions of the roots there are, rising."""
    files = repository_folder(state, repository).glob("*.root.json")
    return tuple(sorted(int(file.name.partition(".")[0]) for file in files if file.name[0].isdigit()))


def _first_root(repository: str, keys: KeyFolder, now: datetime) -> Root:
    root = Root(version=1, expires=now + ROOT_LIFETIME, consistent_snapshot=True)
    for name in ROOT_KEYS:
        root.add_key(keys.make(name).public_key, "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role, name in _ROLES[repository].items():
        root.add_key(keys.make(name).public_key, role)
    return root


def _replace(root: Root, old: CryptoSigner, new: CryptoSigner) -> None:
    for role, entry in root.roles.items():
        if old.public_key.keyid in entry.keyids:
            root.revoke_key(old.public_key.keyid, role)
            root.add_key(new.public_key, role)


def _write(state: Path, repository: str, root: Root, keys: KeyFolder, extra: tuple[CryptoSigner, ...]) -> None:
    """Sign with every root key that is here. A signature too many is ignored by verifiers; one too few is
    found before anything is written."""
    metadata = Metadata(root)
    for signer in (*(keys.load(name) for name in ROOT_KEYS if keys.has(name)), *extra):
        metadata.sign(signer, append=True)
    root.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    path = _path(state, repository, root.version)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, metadata.to_bytes())


def _path(state: Path, repository: str, version: int) -> Path:
    return repository_folder(state, repository) / f"{version}.root.json"
