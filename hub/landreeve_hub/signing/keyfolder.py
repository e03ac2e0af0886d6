"""The five private keys of a hub run by one operator, as PKCS#8 PEM files of mode 0600.

``root-1`` to ``root-3``   any two change who may sign anything; move two of them off the machine
``targets``                the approvers': says which releases are good at all
``director``               online: says which device gets which approved release, and keeps both repositories fresh
"""

from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from landreeve.blobs.durable import sync_folder, write_durably
from securesystemslib.signer import CryptoSigner

from landreeve_hub.signing.errors import KeyMissingError

ROOT_KEYS = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
TARGETS_KEY = "targets"
DIRECTOR_KEY = "director"
ALL_KEYS = (*ROOT_KEYS, TARGETS_KEY, DIRECTOR_KEY)


class KeyFolder:
    """``<state>/keys``. A key being replaced waits as ``<name>.pem.next`` until every root names it."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "keys"

    def load(self, name: str) -> CryptoSigner:
        """The signer of that name; `KeyMissingError` says where it should be."""
        return _load(self._path(name), name)

    def has(self, name: str) -> bool:
        """Whether the key is on this machine."""
        return self._path(name).is_file()

    def make(self, name: str) -> CryptoSigner:
        """The signer of that name, made now if there is none."""
        return self.load(name) if self.has(name) else _make(self._path(name))

    def next(self, name: str) -> CryptoSigner | None:
        """The key that is about to replace the named one."""
        path = self._next_path(name)
        return _load(path, name) if path.is_file() else None

    def make_next(self, name: str) -> CryptoSigner:
        """The key that will replace the named one, made now if there is none waiting."""
        return self.next(name) or _make(self._next_path(name))

    def promote(self, name: str) -> None:
        """Put the waiting key in the place of the old one."""
        self._next_path(name).replace(self._path(name))
        sync_folder(self._folder)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pem"

    def _next_path(self, name: str) -> Path:
        return self._folder / f"{name}.pem.next"


def _make(path: Path) -> CryptoSigner:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    signer = CryptoSigner.generate_ed25519()
    write_durably(path, signer.private_bytes, 0o600)
    return signer


def _load(path: Path, name: str) -> CryptoSigner:
    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), None))
    except FileNotFoundError:
        raise KeyMissingError(f"the {name} key is not on this machine: put it at {path} and try again") from None
    except (ValueError, TypeError) as error:
        raise KeyMissingError(f"the {name} key at {path} cannot be read: {error}") from error
