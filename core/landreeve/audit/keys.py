"""The two ed25519 keys of a log: one signs its checkpoints, one cosigns others'. Files of 0600 outside the database."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from landreeve.audit import note
from landreeve.audit.note import Key
from landreeve.blobs.durable import write_durably


@dataclass(frozen=True)
class LogKeys:
    """``origin`` names the log and its signatures."""

    origin: str
    log: Ed25519PrivateKey
    witness: Ed25519PrivateKey

    @property
    def key(self) -> Key:
        return note.log_key(self.origin, self.log)

    @property
    def witness_key(self) -> Key:
        return note.witness_key(self.origin, self.witness)


def load(folder: Path, origin: str) -> LogKeys:
    """``audit.pem`` and ``witness.pem`` of the folder, made when missing."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return LogKeys(origin, _load(folder / "audit.pem"), _load(folder / "witness.pem"))


def _load(path: Path) -> Ed25519PrivateKey:
    if not path.exists():
        made = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_durably(path, made, 0o600)
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError(f"{path}: the audit key must be ed25519; move the file away to have a new one made")
    return key
