"""How the signed document and the releases are named in TUF metadata; both sides must agree on every byte.

Both repositories use consistent snapshots for *metadata*: file names carry the version (``7.targets.json``),
only ``timestamp.json`` does not. Targets are never downloaded through TUF (the document comes with its
metadata, releases come block by block), so no target is ever prefixed with its hash: the name listed in the
metadata is the only name there is.

A release is ``releases/<sha256>`` to the director and in the approvers' own list; a role that the approvers
delegate to lists it as ``models/<model>/<sha256>`` (`target_name`), since TUF delegates by patterns of names.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from landreeve.wire.ids import check_digest, check_id
from landreeve.wire.messages import Desired

REPOSITORIES = ("director", "targets")
DOCUMENT_NAME = "desired.json"
COMPONENT_FIELD = "component"  # in a target's custom: what kind of thing it is; left out of models'
ISSUED_FIELD = "x-issued"  # in a timestamp: RFC 3339 UTC of its signing; TUF keeps fields it does not know


def release_name(digest: str) -> str:
    """The target name of a release in both repositories.

    >>> release_name("0" * 64)[:14]
    'releases/00000'
    """
    return f"releases/{check_digest(digest)}"


class Component(StrEnum):
    """What a signed target is. Each kind has a folder of its own, so that a role can be delegated one kind, or one
    subject within it (``models/flight-*/*``), and no other."""

    MODEL = "model"
    AGENT = "agent"
    FIRMWARE = "firmware"


_FOLDERS = {Component.MODEL: "models", Component.AGENT: "agent", Component.FIRMWARE: "firmware"}


def target_name(component: Component, subject: str, digest: str) -> str:
    """The name under which a delegated role lists a target. ``subject`` is the model, the platform of an agent's
    package (``linux-arm64``), or the board of a firmware bundle.

    >>> target_name(Component.MODEL, "flight-delay", "0" * 64)[:24]
    'models/flight-delay/0000'
    """
    return f"{_FOLDERS[component]}/{check_id(subject)}/{check_digest(digest)}"


def component_of(custom: Mapping[str, Any] | None) -> str:
    """What a target's custom says it is; a text this version does not know is not a model."""
    return str((custom or {}).get(COMPONENT_FIELD, Component.MODEL))


def document_text(desired: Desired) -> str:
    """The exact text that is hashed, signed and sent."""
    return msgspec.json.encode(desired).decode()


def parse_document(text: str) -> Desired:
    """The document in a text whose hash has been verified; `ValueError` names a wrong field."""
    return msgspec.json.decode(text, type=Desired)
