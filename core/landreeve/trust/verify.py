"""Whether to believe a signed document: two TUF repositories must agree before a release may be installed.

The *director* (online) says what this device should run; the *targets* repository holds what approvers signed.
Each is verified by python-tuf's client over the metadata that came with the document, so a broker, or a hub
whose online keys are stolen, can neither forge a release nor bring back an older document.
Uptane Standard 2.1, clause 5.4.4 (full verification), with one device for each vehicle.
"""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from landreeve.trust.anchor import REPOSITORIES, root_path
from landreeve.trust.cache import Caches
from landreeve.trust.document import DOCUMENT_NAME, ISSUED_FIELD, parse_document, release_name
from landreeve.trust.floor import believable, clock_is_behind, raise_floor, read_floor
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.wire.messages import Desired, DesiredModel, SignedDesired

_BASE_URL = "memory://metadata/"
_NEVER = datetime.fromtimestamp(0, UTC)
S = TypeVar("S", Targets, Timestamp)


class _RefusedError(Exception):
    """Carries a `Rejected` out of the checks of one verification."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.rejected = Rejected(cause, sentence)


class _MapFetcher(FetcherInterface):
    """Serves metadata from a message. A missing root N+1 must look like HTTP 404: that is how the client
    workflow (TUF 1.0, 5.3.3) learns that N is the newest; any other error would end the update."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_BASE_URL)
        if name not in self._files:
            raise DownloadHTTPError(f"{name} is not in the message", 404)
        return iter((self._files[name].encode(),))


class DesiredVerifier:
    """Judges documents for one device. ``trust_dir`` holds the roots from enrolment, the TUF caches and the time
    floor; ``build_time`` is when this software was made. One verifier for each folder; calls wait for each other."""

    def __init__(self, trust_dir: Path, device: str, build_time: datetime) -> None:
        self._trust_dir = trust_dir
        self._device = device
        self._build_time = build_time
        self._caches = Caches(trust_dir)
        self._one = threading.Lock()

    def verify(self, signed: SignedDesired, now: datetime) -> Believed | Rejected:
        """Believe the document or say why not. What is rejected changes nothing that is kept; what is believed
        is remembered, so an older one is refused from then on. The same document is believed again."""
        floor = read_floor(self._trust_dir, self._build_time)
        if clock_is_behind(now, floor):
            return Rejected(
                Cause.CLOCK_BEHIND,
                f"The clock says {now:%Y-%m-%d %H:%M} UTC, but it is at least {floor:%Y-%m-%d %H:%M} UTC. "
                "Nothing new is installed until the clock is set.",
            )
        try:
            with self._one:
                return self._verify(signed, now, floor)
        except _RefusedError as refused:
            return refused.rejected
        except OSError as error:
            return Rejected(Cause.STORAGE, f"The trust folder {self._trust_dir} cannot be used: {error}.")

    def _verify(self, signed: SignedDesired, now: datetime, floor: datetime) -> Believed:
        work = self._caches.copy()
        adopted = False
        try:
            moment = max(now, floor)
            director = self._refresh("director", signed.director, work / "director", moment)
            targets = self._refresh("targets", signed.targets, work / "targets", moment)
            believed = _judge(signed, self._device, director, targets)
            issued = max(_issued(work / repository) for repository in REPOSITORIES)
            self._caches.adopt(work)
            adopted = True
            raise_floor(self._trust_dir, believable(issued, now, floor), self._build_time)
            return believed
        finally:
            if not adopted:
                self._caches.discard(work)

    def _refresh(self, repository: str, files: dict[str, str], folder: Path, moment: datetime) -> Targets:
        """The verified top-level targets of one repository."""
        try:
            root = root_path(self._trust_dir, repository).read_bytes()
        except FileNotFoundError:
            raise _RefusedError(
                Cause.NOT_ENROLLED, f"No {repository} root is kept here: this box has not joined a fleet yet."
            ) from None
        try:
            updater = Updater(
                str(folder),
                _BASE_URL,
                fetcher=_MapFetcher(files),
                config=UpdaterConfig(prefix_targets_with_hash=False),
                bootstrap=root,
            )
            # The client asks datetime.now() and offers no hook; a clock that may be wrong must not decide.
            updater._trusted_set.reference_time = moment
            updater.refresh()
        except (RepositoryError, DownloadError) as error:
            raise _refusal(repository, error) from error
        return _read(folder / "targets.json", Targets)


def _judge(signed: SignedDesired, device: str, director: Targets, targets: Targets) -> Believed:
    """Compare the document with what both (verified) repositories list; raises `_RefusedError`."""
    desired = _document(signed, director)
    if desired.device != device:
        raise _RefusedError(Cause.OTHER_DEVICE, f"The document is for device {desired.device}, this is {device}.")
    if not desired.generation == signed.generation == director.version:
        raise _RefusedError(
            Cause.WRONG_GENERATION,
            f"The document says generation {desired.generation}, its envelope {signed.generation}, "
            f"the director signed {director.version}.",
        )
    releases = {model.release: _agreed_length(model, director, targets) for model in desired.models}
    return Believed(desired, releases, director.version)


def _document(signed: SignedDesired, director: Targets) -> Desired:
    listed = director.targets.get(DOCUMENT_NAME)
    if listed is None:
        raise _RefusedError(Cause.TAMPERED, "The director signed no document.")
    try:
        listed.verify_length_and_hashes(signed.document.encode())
        return parse_document(signed.document)
    except LengthOrHashMismatchError as error:
        raise _RefusedError(Cause.TAMPERED, "The document is not the one the director signed.") from error
    except ValueError as error:
        raise _RefusedError(Cause.INVALID, f"The document cannot be read: {error}.") from error


def _agreed_length(model: DesiredModel, director: Targets, targets: Targets) -> int:
    """Bytes of the model's release when director, approvers and document agree on it."""
    what = f"Release {model.release[:12]} ({model.model} {model.version})"
    name = release_name(model.release)
    ordered, approved = director.targets.get(name), targets.targets.get(name)
    if ordered is None:
        raise _RefusedError(Cause.NOT_ORDERED, f"{what} is in the document, but the director did not sign for it.")
    if approved is None:
        raise _RefusedError(Cause.NOT_APPROVED, f"{what} is ordered, but no approver has signed it.")
    facts = (_length_and_hash(ordered), _length_and_hash(approved))
    if facts != ((model.manifest_bytes, model.release),) * 2:
        raise _RefusedError(
            Cause.DISAGREEMENT,
            f"{what} has {model.manifest_bytes} bytes in the document, {facts[0][0]} bytes of "
            f"{facts[0][1][:12]} for the director, {facts[1][0]} bytes of {facts[1][1][:12]} for the approvers.",
        )
    custom = approved.custom or {}
    if (custom.get("model"), custom.get("version")) != (model.model, model.version):
        raise _RefusedError(
            Cause.DISAGREEMENT, f"{what} was approved as {custom.get('model')} {custom.get('version')}."
        )
    return model.manifest_bytes


def _length_and_hash(target: TargetFile) -> tuple[int, str]:
    return target.length, target.hashes.get("sha256", "")


def _read(path: Path, kind: type[S]) -> S:
    """Metadata the client has verified and kept."""
    signed = Metadata.from_file(str(path)).signed
    assert isinstance(signed, kind)  # noqa: S101  the client keeps nothing of another type under this name
    return signed


def _issued(folder: Path) -> datetime:
    """When the timestamp was signed; a signer that does not say so raises no floor."""
    text = _read(folder / "timestamp.json", Timestamp).unrecognized_fields.get(ISSUED_FIELD)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else _NEVER
    except ValueError:
        return _NEVER
    return moment if moment.tzinfo else _NEVER


_SENTENCES: tuple[tuple[type[Exception], Cause, str], ...] = (
    (ExpiredMetadataError, Cause.EXPIRED, "The {0} metadata has expired; the hub must sign it anew"),
    (BadVersionNumberError, Cause.DOWNGRADE, "The {0} metadata is older than what was believed before"),
    (UnsignedMetadataError, Cause.BAD_SIGNATURE, "The {0} metadata does not carry enough valid signatures"),
    (LengthOrHashMismatchError, Cause.MIX_AND_MATCH, "Pieces of the {0} metadata do not belong together"),
    (DownloadHTTPError, Cause.MISSING, "A piece of the {0} metadata is not in the message"),
    (RepositoryError, Cause.INVALID, "The {0} metadata cannot be accepted"),
    (DownloadError, Cause.INVALID, "The {0} metadata cannot be read"),
)


def _refusal(repository: str, error: RepositoryError | DownloadError) -> _RefusedError:
    cause, sentence = next((cause, text) for kind, cause, text in _SENTENCES if isinstance(error, kind))
    return _RefusedError(cause, f"{sentence.format(repository)}: {str(error).rstrip('.')}.")
