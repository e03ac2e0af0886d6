"""The private keys of a hub, as PKCS#8 PEM files of mode 0600, and the public halves of those kept elsewhere.

``root-1`` to ``root-3``   any two change who may sign anything; move two of them off the machine
``targets``                the approvers': says which releases are good at all, or who may say so
``director``               online: says which device gets which approved release, and keeps both repositories fresh

A key is looked for in ``<state>/keys``, then among the credentials systemd gives the service
(``$CREDENTIALS_DIRECTORY/<name>.pem``). ``<name>.pub.json`` stays when the private key has been moved away.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from landreeve.blobs.durable import sync_folder, write_durably
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key

from landreeve_hub.signing.errors import KeyMissingError
from landreeve_hub.signing.locked import credentials_folder, from_pem, known_passphrase, to_pem

ROOT_KEYS = ("root-1", "root-2", "root-3")
ROOT_THRESHOLD = 2
TARGETS_KEY = "targets"
DIRECTOR_KEY = "director"
ALL_KEYS = (*ROOT_KEYS, TARGETS_KEY, DIRECTOR_KEY)
AWAY = ROOT_KEYS[1:]
"""What a fleet run by one person stores in two places off the machine."""
NAME_FIELD = "x-name"  # in a key of the metadata: what people call it


class KeyFolder:
    """``<state>/keys``. A key being replaced waits as ``<name>.pem.next`` until every root names it."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "keys"
        self._online: tuple[tuple[str, int, int], CryptoSigner] | None = None

    def load(self, name: str) -> CryptoSigner:
        """The signer of that name; `KeyMissingError` says where it should be."""
        path = self._found(name)
        return self._load_online(path) if name == DIRECTOR_KEY and path.is_file() else _load(path, name)

    def _load_online(self, path: Path) -> CryptoSigner:
        """The director's key stays unlocked in memory: it signs for every device."""
        found = path.stat()
        file = (str(path), found.st_ino, found.st_mtime_ns)
        if self._online is None or self._online[0] != file:
            self._online = (file, _load(path, DIRECTOR_KEY))
        return self._online[1]

    def has(self, name: str) -> bool:
        """Whether the key is on this machine."""
        return self._found(name).is_file()

    def where(self, name: str) -> str:
        """``state`` or ``credentials`` when the key is on this machine; ``elsewhere`` when it is not."""
        if self._path(name).is_file():
            return "state"
        return "credentials" if self.has(name) else "elsewhere"

    def make(self, name: str) -> CryptoSigner:
        """The signer of that name, made now if there is none."""
        signer = self.load(name) if self.has(name) else make_key(self._path(name))
        if not self._public_path(name).is_file():
            self.remember(name, signer.public_key)
        return signer

    def public(self, name: str) -> Key | None:
        """The public half of the key of that name, wherever the private one is."""
        path = self._public_path(name)
        if path.is_file():
            return read_key(json.loads(path.read_text()))
        return self.load(name).public_key if self.has(name) else None

    def remember(self, name: str, key: Key) -> None:
        """Keep the public half: the key of that name is this one from now on."""
        write_durably(self._public_path(name), json.dumps(key_document(key, name)).encode(), 0o600)

    def next(self, name: str) -> CryptoSigner | None:
        """The key that is about to replace the named one."""
        path = self._next_path(name)
        return _load(path, name) if path.is_file() else None

    def waiting(self, name: str) -> Key | None:
        """The public half of the key that is about to replace the named one; None also when it is locked."""
        try:
            signer = self.next(name)
        except KeyMissingError:
            return None
        return signer.public_key if signer is not None else None

    def make_next(self, name: str) -> CryptoSigner:
        """The key that will replace the named one, made now if there is none waiting."""
        return self.next(name) or make_key(self._next_path(name))

    def forget_next(self, name: str) -> None:
        """The replacement is called off."""
        self._next_path(name).unlink(missing_ok=True)

    def replace(self, name: str, key: Key) -> None:
        """The named key is ``key`` from now on: the waiting one takes the old one's place, or the old one goes since
        the new one is kept elsewhere. One that cannot be read stays where it is. May be repeated."""
        waiting = self.next(name)
        if waiting is not None and waiting.public_key.keyid == key.keyid:
            self._next_path(name).replace(self._path(name))
            sync_folder(self._folder)
        elif self._is_another(name, key):
            self._path(name).replace(self._folder / f"{name}.pem.old")
        self.remember(name, key)

    def _is_another(self, name: str, key: Key) -> bool:
        path = self._path(name)
        try:
            return path.is_file() and _load(path, name).public_key.keyid != key.keyid
        except KeyMissingError:  # locked, and the passphrase is not here: it signs nothing on this machine
            return False

    def _found(self, name: str) -> Path:
        own, folder = self._path(name), credentials_folder()
        given = folder / own.name if folder is not None else own
        return given if not own.is_file() and given.is_file() else own

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pem"

    def _next_path(self, name: str) -> Path:
        return self._folder / f"{name}.pem.next"

    def _public_path(self, name: str) -> Path:
        return self._folder / f"{name}.pub.json"


def make_key(path: Path, passphrase: str | None = None) -> CryptoSigner:
    """A new key in a file of mode 0600, under the passphrase, or under this machine's where none is given."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    signer = CryptoSigner.generate_ed25519()
    write_durably(path, to_pem(signer, known_passphrase() if passphrase is None else passphrase), 0o600)
    return signer


def key_document(key: Key, name: str) -> dict[str, Any]:
    """A public key as it is kept and handed on."""
    return {"keyid": key.keyid, "name": name, "key": {**key.to_dict(), NAME_FIELD: name}}


def read_key(document: Any) -> Key:
    """The public key of a document; `ValueError` when it holds none, or one under the id of another."""
    try:
        return check_keyid(Key.from_dict(str(document["keyid"]), dict(document["key"])))
    except (KeyError, TypeError, AttributeError, FormatError) as error:
        raise ValueError(f"this holds no public key: {error!r} is missing or wrong") from error


def check_keyid(key: Key) -> Key:
    """The same key when its id is the digest of what it consists of; else `ValueError`.

    Thresholds count ids, and people compare them: one key under two ids would count twice, and a key under the id of
    another would take its place unseen. TUF leaves ids free and its clients do not check them.
    """
    facts = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
    if hashlib.sha256(str(encode_canonical(facts)).encode()).hexdigest() != key.keyid:
        raise ValueError(f"the key {key.keyid[:12]} does not have its own id")
    return key


def named(key: Key, name: str) -> Key:
    """The key with what people call it, as it stands in metadata."""
    return read_key(key_document(key, name))


def _load(path: Path, name: str) -> CryptoSigner:
    try:
        return from_pem(path.read_bytes(), known_passphrase(), str(path))
    except FileNotFoundError:
        raise KeyMissingError(f"the {name} key is not on this machine: put it at {path} and try again") from None
