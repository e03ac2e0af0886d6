"""Who this box is to its fleet: ``identity.json`` and the files in ``keys/``."""

from pathlib import Path

import msgspec
from landreeve.blobs.durable import write_durably

from landreeve_agent.errors import StateError

IDENTITY_FILE = "identity.json"


class BadIdentityError(StateError, ValueError):
    """``identity.json`` cannot be read; the text says what is wrong."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Learnt at enrolment. ``hub_url`` is the hub's HTTPS address, ``device`` the certificate's common name."""

    device: str
    fleet: str
    site: str
    hub_url: str
    broker_host: str
    broker_port: int


def keys_folder(state: Path) -> Path:
    """Where ``device.key``, ``device.crt`` and ``ca.crt`` are."""
    return state / "keys"


def trust_folder(state: Path) -> Path:
    """Where roots, TUF caches and the time floor are."""
    return state / "trust"


def load_identity(state: Path) -> Identity | None:
    """The identity, or None for a box that has joined no fleet. `BadIdentityError` for a damaged file."""
    path = state / IDENTITY_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadIdentityError(f"{path}: {error}; restore it from a backup or join again") from error


def save_identity(state: Path, identity: Identity) -> None:
    """Keep the identity; from this moment the box has joined."""
    write_durably(state / IDENTITY_FILE, msgspec.json.format(msgspec.json.encode(identity), indent=2), 0o600)
