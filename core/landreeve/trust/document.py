"""How the signed document and the releases are named in TUF metadata; both sides must agree on every byte.

Both repositories use consistent snapshots for *metadata*: file names carry the version (``7.targets.json``),
only ``timestamp.json`` does not. Targets are never downloaded through TUF (the document comes with its
metadata, releases come block by block), so no target is ever prefixed with its hash: the name listed in the
metadata is the only name there is.
"""

import msgspec

from landreeve.wire.ids import check_digest
from landreeve.wire.messages import Desired

DOCUMENT_NAME = "desired.json"
ISSUED_FIELD = "x-issued"  # in a timestamp: RFC 3339 UTC of its signing; TUF keeps fields it does not know


def release_name(digest: str) -> str:
    """The target name of a release in both repositories.

    >>> release_name("0" * 64)[:14]
    'releases/00000'
    """
    return f"releases/{check_digest(digest)}"


def document_text(desired: Desired) -> str:
    """The exact text that is hashed, signed and sent."""
    return msgspec.json.encode(desired).decode()


def parse_document(text: str) -> Desired:
    """The document in a text whose hash has been verified; `ValueError` names a wrong field."""
    return msgspec.json.decode(text, type=Desired)
