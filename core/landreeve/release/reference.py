"""Names of releases in OCI registries: ``oci://host[:port]/name[:tag][@sha256:digest]``.

Grammar of names and tags: OCI distribution specification 1.1, "Pulling manifests".
"""

import hashlib
import re
from dataclasses import dataclass

from landreeve.release.errors import BadReleaseError

SCHEME = "oci://"
MAX_NAME_CHARACTERS = 200
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PORT = re.compile(r":[0-9]{1,5}\Z")
_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?|\[[0-9a-fA-F:.]+\]"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """``registry`` is ``host`` or ``host:port``; ``digest`` is ``sha256:…`` or empty and counts before the tag."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def wanted(self) -> str:
        """What stands in the URL of the manifest."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag, digest = (f":{self.tag}" if self.tag else ""), (f"@{self.digest}" if self.digest else "")
        return f"{SCHEME}{self.registry}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """The reference in the text; without tag and digest it is the tag ``latest``. `BadReleaseError` says what a
    reference looks like.

    >>> parse_reference("oci://hub.example:5000/models/demand:v3").repository
    'models/demand'
    """
    rest, _, digest = text.removeprefix(SCHEME).partition("@")
    registry, _, path = rest.partition("/")
    name, colon, tag = path.partition(":")
    host, _, port = registry.rpartition(":") if _PORT.search(registry) else (registry, "", "0")
    fits = (
        text.startswith(SCHEME)
        and _HOST.fullmatch(host)
        and int(port) < 65536
        and is_name(name)
        and (is_tag(tag) or not colon)
        and (_DIGEST.fullmatch(digest) or not digest)
        and ("@" in text) == bool(digest)
    )
    if not fits:
        raise BadReleaseError(
            f"reference {text[:120]!r}: write it as oci://host[:port]/name:tag or oci://host[:port]/name@sha256:… "
            "(names in lower case)"
        )
    return Reference(registry, name, tag or ("" if digest else "latest"), digest)


def is_name(text: str) -> bool:
    """Whether it is a repository's name."""
    return len(text) <= MAX_NAME_CHARACTERS and bool(_NAME.fullmatch(text))


def is_tag(text: str) -> bool:
    """Whether it is a tag."""
    return bool(_TAG.fullmatch(text))


def repository_of(model: str) -> str:
    """The name of the repository that holds a model's releases: the model's own name where registries allow it
    (lower case, single separators), else a name made from it that no other model has.

    >>> repository_of("flight-delay"), repository_of("Flight")
    ('flight-delay', 'flight-model-d839f0fd')
    """
    if is_name(model):
        return model
    plain = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{plain}-model-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
