"""The first roots a device trusts: given once at enrolment over a connection pinned by the token.

They are kept apart from the caches: an `Updater` starts from them every time, so a damaged cache can cost a
download but never the trust.
"""

from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from landreeve.blobs.durable import write_durably
from landreeve.trust.document import REPOSITORIES
from landreeve.trust.floor import raise_floor


class BadRootError(ValueError):
    """A root that is none, or does not carry its own threshold of signatures."""


def root_path(trust_dir: Path, repository: str) -> Path:
    """Where the root given at enrolment is kept."""
    return trust_dir / f"{repository}.root.json"


def install(trust_dir: Path, roots: dict[str, str], hub_time: datetime) -> None:
    """Keep the roots (by repository) and the hub's time as first floor. `BadRootError` before anything is kept."""
    for repository in REPOSITORIES:
        check_root(repository, roots[repository])
    trust_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for repository in REPOSITORIES:
        write_durably(root_path(trust_dir, repository), roots[repository].encode(), 0o600)
    raise_floor(trust_dir, hub_time, datetime.fromtimestamp(0, UTC))


def check_root(repository: str, text: str) -> None:
    """`BadRootError` unless the text is a root signed by the threshold it states itself."""
    try:
        root = Metadata[Root].from_bytes(text.encode())
        if not isinstance(root.signed, Root):
            raise BadRootError(f"{repository} root: this is {root.signed.type} metadata")
        root.signed.verify_delegate(Root.type, root.signed_bytes, root.signatures)
    except RepositoryError as error:
        raise BadRootError(f"{repository} root: {error}") from error
