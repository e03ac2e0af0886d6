"""One TUF repository as this box trusts it: the client workflow (TUF 1.0, clause 5) over bytes that a reader finds.

What the bytes travel in is the caller's matter: a message of the hub, a folder, a web server. The same path is
taken for all of them, so what a conformance suite says of it over HTTP holds for what arrives over MQTT.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from landreeve.trust.document import ISSUED_FIELD

Read = Callable[[str], bytes | Iterator[bytes] | None]
"""The bytes of a metadata file by its name (``7.targets.json``), at once or in pieces; None when there is none."""

MAX_ROOT_BYTES = 131_072
MAX_TIMESTAMP_BYTES = 16_384
MAX_SNAPSHOT_BYTES = 262_144
MAX_TARGETS_BYTES = 1_048_576
"""A list of releases: about 2,500 of them. A broker's packet holds no more either."""
MAX_ROOT_ROTATIONS = 256
MAX_DELEGATIONS = 32

_BASE_URL = "read://metadata/"
_NEVER = datetime.fromtimestamp(0, UTC)


class ReadFetcher(FetcherInterface):
    """Serves metadata from a reader. A missing root N+1 must look like HTTP 404: that is how the client workflow
    (TUF 1.0, 5.3.3) learns that N is the newest; any other error would end the update."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(_BASE_URL)
        found = self._read(name)
        if found is None:
            raise DownloadHTTPError(f"{name} is missing", 404)
        return iter((found,)) if isinstance(found, bytes) else found


class RepositoryClient:
    """A repository cached in ``folder``, whose trust begins with the root ``bootstrap``. ``moment`` is what expiry is
    judged by. Once for each refresh; errors are python-tuf's `RepositoryError` and `DownloadError`, and `OSError`."""

    def __init__(self, folder: Path, bootstrap: bytes, read: Read, moment: datetime) -> None:
        self._folder = folder
        self._updater = Updater(
            str(folder),
            _BASE_URL,
            fetcher=ReadFetcher(read),
            config=UpdaterConfig(
                max_root_rotations=MAX_ROOT_ROTATIONS,
                max_delegations=MAX_DELEGATIONS,
                root_max_length=MAX_ROOT_BYTES,
                timestamp_max_length=MAX_TIMESTAMP_BYTES,
                snapshot_max_length=MAX_SNAPSHOT_BYTES,
                targets_max_length=MAX_TARGETS_BYTES,
                prefix_targets_with_hash=False,
            ),
            bootstrap=bootstrap,
        )
        # The client asks datetime.now() and offers no hook; a clock that may be wrong must not decide.
        self._updater._trusted_set.reference_time = moment

    def refresh(self) -> Targets:
        """Roots, timestamp, snapshot and the top-level list, each verified and kept; the list."""
        self._updater.refresh()
        # The client keeps nothing of another type under this name.
        return Metadata[Targets].from_file(str(self._folder / "targets.json")).signed

    def find(self, name: str) -> TargetFile | None:
        """What the repository says of a target, itself or through the roles it delegates the name to."""
        return self._updater.get_targetinfo(name)

    def issued(self) -> datetime:
        """When the timestamp was signed; 1970 where the signer does not say so, which raises no floor."""
        signed = Metadata[Timestamp].from_file(str(self._folder / "timestamp.json")).signed
        text = signed.unrecognized_fields.get(ISSUED_FIELD)
        try:
            moment = datetime.fromisoformat(text) if isinstance(text, str) else _NEVER
        except ValueError:
            return _NEVER
        return moment if moment.tzinfo else _NEVER
