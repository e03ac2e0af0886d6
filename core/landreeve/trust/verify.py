"""Whether to believe a signed document: two TUF repositories must agree before a release may be installed.

The *director* (online) says what this device should run; the *targets* repository holds what approvers signed.
Each is verified by python-tuf's client over the metadata that came with the document, so a broker, or a hub
whose online keys are stolen, can neither forge a release nor bring back an older document.
Uptane Standard 2.1, clause 5.4.4 (full verification), with one device for each vehicle.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile, Targets

from landreeve.trust.anchor import root_path
from landreeve.trust.cache import Caches
from landreeve.trust.client import RepositoryClient
from landreeve.trust.document import DOCUMENT_NAME, Component, component_of, parse_document, release_name, target_name
from landreeve.trust.floor import Floor, clock_problem
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.wire.messages import Desired, DesiredModel, SignedDesired


class _RefusedError(Exception):
    """Carries a `Rejected` out of the checks of one verification."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.rejected = Rejected(cause, sentence)


class DesiredVerifier:
    """Judges documents for one device. ``trust_dir`` holds the roots from enrolment, the TUF caches and the time
    floor; ``build_time`` is when this software was made. One verifier for each folder; calls wait for each other."""

    def __init__(
        self,
        trust_dir: Path,
        device: str,
        build_time: datetime,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trust_dir = trust_dir
        self._device = device
        self._floor = Floor(trust_dir, build_time, monotonic)
        self._caches = Caches(trust_dir)
        self._one = threading.Lock()

    def verify(self, signed: SignedDesired, now: datetime) -> Believed | Rejected:
        """Believe the document or say why not. What is rejected changes nothing that is kept but the roots, where
        newer ones verified; what is believed is remembered, so an older one is refused from then on. The same
        document is believed again."""
        if sentence := self.clock_problem(now):
            return Rejected(Cause.CLOCK_BEHIND, sentence)
        try:
            with self._one:
                return self._verify(signed, now)
        except _RefusedError as refused:
            return refused.rejected
        except OSError as error:
            return Rejected(Cause.STORAGE, f"The trust folder {self._trust_dir} cannot be used: {error}.")

    def clock_problem(self, now: datetime) -> str:
        """Why nothing can be installed by this clock, in one sentence; empty when its time is possible."""
        return clock_problem(now, self._floor.earliest())

    def _verify(self, signed: SignedDesired, now: datetime) -> Believed:
        work = self._caches.copy()
        adopted = False
        try:
            moment = self._floor.moment(now)
            director = self._client("director", signed.director, work, moment)
            targets = self._client("targets", signed.targets, work, moment)
            believed = _judge(signed, self._device, director, targets)
            issued = max(director.client.issued(), targets.client.issued())
            self._caches.adopt(work)
            adopted = True
            self._floor.learn(issued, now)
            return believed
        finally:
            if not adopted:
                try:
                    self._caches.adopt_roots(work)
                finally:
                    self._caches.discard(work)

    def _client(self, repository: str, files: dict[str, str], work: Path, moment: datetime) -> "_Repository":
        """One repository, refreshed from the message."""
        try:
            root = root_path(self._trust_dir, repository).read_bytes()
        except FileNotFoundError:
            raise _RefusedError(
                Cause.NOT_ENROLLED, f"No {repository} root is kept here: this box has not joined a fleet yet."
            ) from None

        def read(name: str) -> bytes | None:
            text = files.get(name)
            return None if text is None else text.encode()

        try:
            client = RepositoryClient(work / repository, root, read, moment)
            return _Repository(repository, client, client.refresh(), moment)
        except (RepositoryError, DownloadError) as error:
            raise _refusal(repository, error, moment) from error


@dataclass(frozen=True, slots=True)
class _Repository:
    """A verified repository and its top-level list."""

    name: str
    client: RepositoryClient
    listed: Targets
    moment: datetime

    def find(self, target: str) -> TargetFile | None:
        """A target that a delegated role may list."""
        try:
            return self.client.find(target)
        except (RepositoryError, DownloadError) as error:
            raise _refusal(self.name, error, self.moment) from error


def _judge(signed: SignedDesired, device: str, director: _Repository, targets: _Repository) -> Believed:
    """Compare the document with what both (verified) repositories list; raises `_RefusedError`."""
    desired = _document(signed, director.listed)
    if desired.device != device:
        raise _RefusedError(Cause.OTHER_DEVICE, f"The document is for device {desired.device}, this is {device}.")
    if not desired.generation == signed.generation == director.listed.version:
        raise _RefusedError(
            Cause.WRONG_GENERATION,
            f"The document says generation {desired.generation}, its envelope {signed.generation}, "
            f"the director signed {director.listed.version}.",
        )
    releases = {model.release: _agreed_length(model, director, targets) for model in desired.models}
    return Believed(desired, releases, director.listed.version)


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


def _agreed_length(model: DesiredModel, director: _Repository, targets: _Repository) -> int:
    """Bytes of the model's release when director, approvers and document agree on it."""
    what = f"Release {model.release[:12]} ({model.model} {model.version})"
    ordered = director.listed.targets.get(release_name(model.release))
    approved = _approved(model, targets)
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
    if component_of(custom) != Component.MODEL:
        raise _RefusedError(Cause.DISAGREEMENT, f"{what} was approved as {component_of(custom)}, not as a model.")
    if (custom.get("model"), custom.get("version")) != (model.model, model.version):
        raise _RefusedError(
            Cause.DISAGREEMENT, f"{what} was approved as {custom.get('model')} {custom.get('version')}."
        )
    return model.manifest_bytes


def _approved(model: DesiredModel, targets: _Repository) -> TargetFile | None:
    """What approvers signed of the release: in their own list, or in that of a role they delegated its name to."""
    listed = targets.listed.targets.get(release_name(model.release))
    return listed or targets.find(target_name(Component.MODEL, model.model, model.release))


def _length_and_hash(target: TargetFile) -> tuple[int, str]:
    return target.length, target.hashes.get("sha256", "")


_SENTENCES: tuple[tuple[type[Exception], Cause, str], ...] = (
    (
        ExpiredMetadataError,
        Cause.EXPIRED,
        "The {0} metadata has expired by this box's clock ({1}); the hub must sign it anew",
    ),
    (BadVersionNumberError, Cause.DOWNGRADE, "The {0} metadata is older than what was believed before"),
    (UnsignedMetadataError, Cause.BAD_SIGNATURE, "The {0} metadata does not carry enough valid signatures"),
    (LengthOrHashMismatchError, Cause.MIX_AND_MATCH, "Pieces of the {0} metadata do not belong together"),
    (DownloadHTTPError, Cause.MISSING, "A piece of the {0} metadata is not in the message"),
    (RepositoryError, Cause.INVALID, "The {0} metadata cannot be accepted"),
    (DownloadError, Cause.INVALID, "The {0} metadata cannot be read"),
)


def _refusal(repository: str, error: RepositoryError | DownloadError, moment: datetime) -> _RefusedError:
    cause, sentence = next((cause, text) for kind, cause, text in _SENTENCES if isinstance(error, kind))
    said = sentence.format(repository, f"{moment:%Y-%m-%d %H:%M} UTC")
    return _RefusedError(cause, f"{said}: {str(error).rstrip('.')}.")
