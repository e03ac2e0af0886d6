"""Keys at rest: one master key, wrapped by the operator's key and by a recovery key; purpose keys wrapped by it.

``keys/vault.json`` holds only wrapped keys. The operator's key never lies in the state folder: it comes from a systemd
credential, from a file elsewhere, or is derived from the passphrase that a command prints. Changing it rewraps 32
bytes; changing a purpose's key adds one, and what the older ones sealed stays readable until it is sealed anew.
"""

import base64
import os
import secrets
import shlex
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from landreeve.blobs.durable import write_durably
from landreeve.sealed.errors import BadVaultError, KeyMissingError, WrongKeyError
from landreeve.sealed.sqlite import is_plain

KEY_BYTES = 32
COMMAND_TIMEOUT_S = 30.0
PURPOSES = ("store", "blobs", "spool")
_NONCE, _SALT_BYTES = 12, 16
_BOX_BYTES = _NONCE + KEY_BYTES + 16


class PurposeKey(msgspec.Struct, frozen=True):
    """A wrapped key of one purpose; of several the last one seals."""

    id: str
    purpose: str
    box: str


class Document(msgspec.Struct, frozen=True):
    """``vault.json``."""

    salt: str
    master: str
    recovery: str
    keys: tuple[PurposeKey, ...] = ()
    version: int = 1


class Vault:
    """An opened vault; its keys live in memory alone."""

    def __init__(self, path: Path, document: Document, master: bytes) -> None:
        self._path = path
        self._document = document
        self._master = master

    @classmethod
    def create(
        cls, path: Path, source: str, state: Path, tell: Callable[[str], object] = lambda _: None
    ) -> tuple["Vault", str]:
        """A new vault on disk, and its recovery key, which is kept nowhere. ``tell`` hears it before the vault is
        written: a kill in between must not leave one whose recovery key nobody knows."""
        salt, master, recovery = os.urandom(_SALT_BYTES), os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
        kek = read_key(source, state, salt)
        keys = tuple(_fresh(master, purpose) for purpose in PURPOSES)
        document = Document(salt.hex(), _wrap(kek, master, "master"), _wrap(recovery, master, "recovery"), keys)
        vault = cls(path, document, master)
        tell(spelled(recovery))
        vault._keep(document)
        return vault, spelled(recovery)

    @classmethod
    def open(cls, path: Path, source: str, state: Path) -> "Vault":
        """The vault of the file; `KeyMissingError`, `WrongKeyError`, `BadVaultError`."""
        document = _read(path)
        kek = read_key(source, state, bytes.fromhex(document.salt))
        try:
            return cls(path, document, _unwrap(kek, document.master, "master"))
        except InvalidTag:
            raise WrongKeyError(
                f"the key from {source} does not open {path}: give the key this state was sealed with "
                "(setting at_rest.key), or use the recovery key: store recover"
            ) from None

    @classmethod
    def recover(cls, path: Path, words: str, source: str, state: Path) -> "Vault":
        """Open with the recovery key and wrap for another operator's key from now on."""
        document = _read(path)
        try:
            master = _unwrap(unspelled(words), document.recovery, "recovery")
        except (InvalidTag, ValueError):
            raise WrongKeyError(f"this recovery key does not open {path}") from None
        vault = cls(path, document, master)
        vault.rewrap(source, state)
        return vault

    def rewrap(self, source: str, state: Path) -> None:
        """From now on the operator's key is that of ``source``."""
        salt = os.urandom(_SALT_BYTES)
        kek = read_key(source, state, salt)
        self._keep(msgspec.structs.replace(self._document, salt=salt.hex(), master=_wrap(kek, self._master, "master")))

    def add_key(self, purpose: str) -> str:
        """A fresh key that seals from now on; its id."""
        made = _fresh(self._master, purpose)
        self._keep(msgspec.structs.replace(self._document, keys=(*self._document.keys, made)))
        return made.id

    def drop_keys(self, purpose: str) -> int:
        """Forget every key of the purpose but the newest, once nothing is sealed with them any more."""
        ids = list(self.keys(purpose))
        kept = tuple(key for key in self._document.keys if key.purpose != purpose or key.id == ids[-1])
        self._keep(msgspec.structs.replace(self._document, keys=kept))
        return len(ids) - 1

    def keys(self, purpose: str) -> dict[str, bytes]:
        """Keys of the purpose by id, the newest last."""
        found = [key for key in self._document.keys if key.purpose == purpose]
        try:
            return {key.id: _unwrap(self._master, key.box, f"{purpose}:{key.id}") for key in found}
        except InvalidTag as error:
            raise BadVaultError(f"{self._path}: a key of purpose {purpose} is damaged; put back a copy") from error

    def newest(self, purpose: str) -> bytes:
        """The key that seals."""
        return list(self.keys(purpose).values())[-1]

    def _keep(self, document: Document) -> None:
        self._document = document
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(self._path, msgspec.json.encode(document), 0o600)


def read_key(source: str, state: Path, salt: bytes, environ: Mapping[str, str] = os.environ) -> bytes:
    """The operator's key, 32 bytes; `KeyMissingError` says what is expected where.

    ``credential:NAME`` of systemd, ``file:/path`` (0600, outside ``state``), or ``command:PROGRAM ARGUMENTS`` whose
    output is a passphrase. File and credential hold 32 bytes, as such or as 64 hex digits.
    """
    kind, _, rest = source.partition(":")
    if kind == "credential" and rest:
        folder = environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder:
            raise KeyMissingError(
                f"{source}: systemd gave no credentials ($CREDENTIALS_DIRECTORY is not set); add "
                f"LoadCredentialEncrypted={rest}:/etc/landreeve/{rest}.cred to the unit"
            )
        return _parsed(_bytes(Path(folder) / rest, source), source)
    if kind == "file" and rest:
        return _parsed(_from_file(Path(rest), state, source), source)
    if kind == "command" and rest:
        return Scrypt(salt=salt, length=KEY_BYTES, n=2**15, r=8, p=1).derive(_passphrase(rest))
    raise KeyMissingError(f"key {source[:60]!r}: write credential:NAME, file:/path or command:PROGRAM ARGUMENTS")


def _from_file(path: Path, state: Path, source: str) -> bytes:
    if path.resolve().is_relative_to(state.resolve()):
        raise KeyMissingError(f"{source}: it lies in the state folder it is to protect; move it elsewhere")
    data = _bytes(path, source)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeyMissingError(f"{source}: others may read it; chmod 600 {path}")
    return data


def _bytes(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyMissingError(
            f"{source}: {path}: {error.strerror}; put the key there or correct at_rest.key"
        ) from error


def _parsed(data: bytes, source: str) -> bytes:
    if len(data) == KEY_BYTES:
        return data
    try:
        key = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyMissingError(f"{source}: 32 bytes or 64 hex digits are expected, found {len(data)} bytes")
    return key


def _passphrase(command: str) -> bytes:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise KeyMissingError(f"command:{command[:60]}: {error}; quote it as a shell would want it") from None
    if not arguments:
        raise KeyMissingError("command: names no program")
    try:
        done = subprocess.run(arguments, capture_output=True, check=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise KeyMissingError(f"command:{arguments[0]}: it gave no passphrase ({type(error).__name__})") from None
    words = done.stdout.rstrip(b"\r\n")
    if not words:
        raise KeyMissingError(f"command:{arguments[0]}: its output is empty")
    return words


def spelled(key: bytes) -> str:
    """A key as people copy it: base32 in groups of four."""
    text = base64.b32encode(key).decode().rstrip("=")
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def unspelled(words: str) -> bytes:
    """The key of `spelled`; ValueError when it is none."""
    text = "".join(words.split()).replace("-", "").upper()
    key = base64.b32decode(text + "=" * (-len(text) % 8))
    if len(key) != KEY_BYTES:
        raise ValueError(f"{len(key)} bytes are no key")
    return key


def _read(path: Path) -> Document:
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
        _check_boxes(document)
    except FileNotFoundError:
        raise KeyMissingError(f"{path}: nothing is sealed here yet; do it with: store encrypt") from None
    except (OSError, ValueError) as error:
        raise BadVaultError(f"{path}: {error}; put back a copy, without it nothing sealed can be read") from error
    if document.version != 1:
        raise BadVaultError(f"{path}: a vault of version {document.version}; update this program")
    return document


def _check_boxes(document: Document) -> None:
    """ValueError when something in it cannot be what it should be."""
    if len(bytes.fromhex(document.salt)) != _SALT_BYTES:
        raise ValueError("its salt has not the length of one")
    for box in (document.master, document.recovery, *(key.box for key in document.keys)):
        if len(base64.b64decode(box, validate=True)) != _BOX_BYTES:
            raise ValueError("a wrapped key has not the length of one")
    if not set(PURPOSES) <= {key.purpose for key in document.keys}:
        raise ValueError("a key is missing")


def _fresh(master: bytes, purpose: str) -> PurposeKey:
    made = secrets.token_hex(8)
    return PurposeKey(made, purpose, _wrap(master, os.urandom(KEY_BYTES), f"{purpose}:{made}"))


def _wrap(key: bytes, secret: bytes, name: str) -> str:
    nonce = os.urandom(_NONCE)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, secret, _bound(name))).decode()


def _unwrap(key: bytes, box: str, name: str) -> bytes:
    raw = base64.b64decode(box)
    return AESGCM(key).decrypt(raw[:_NONCE], raw[_NONCE:], _bound(name))


def _bound(name: str) -> bytes:
    return f"landreeve/vault/1:{name}".encode()


def opened(path: Path, source: str, state: Path, database: Path) -> Vault | None:
    """The vault of a state folder, or None where nothing is sealed: also where a sealing was cut short before it began,
    or an unsealing after its end.

    A sealed state without a key, and a key without a sealed state, are `KeyMissingError`: silently going on in plain
    text would be the worst answer."""
    if not path.exists():
        if source:
            raise KeyMissingError(f"at_rest.key is set and nothing is sealed in {state}; seal it with: store encrypt")
        return None
    if not source and is_plain(database):
        return None
    if not source:
        raise KeyMissingError(f"{state} is sealed and at_rest.key is not set: say where its key is")
    return Vault.open(path, source, state)
