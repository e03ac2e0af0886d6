"""Private keys as PKCS#8 PEM, plain or under a passphrase: PBES2 with scrypt and AES-256 (RFC 8018, RFC 7914).

cryptography reads that form but writes PBKDF2 with 2,048 rounds, which a stolen file does not withstand; so the
few DER elements around its scrypt and AES are put together here. OpenSSL reads the result (``openssl pkey``).
"""

import base64
import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from landreeve_hub.signing.errors import KeyMissingError

VARIABLE = "LANDREEVE_HUB_KEY_PASSPHRASE"
CREDENTIAL = "keys-passphrase"
_N, _R, _P = 2**14, 8, 5  # 16 MiB, five times over, for each guess; OpenSSL reads nothing that needs 32 MiB
_PBES2 = "06092a864886f70d01050d"
_SCRYPT = "06092b06010401da47040b"
_AES256_CBC = "060960864801650304012a"


def credentials_folder() -> Path | None:
    """Where systemd puts the credentials of this service (``LoadCredentialEncrypted=``), if it does."""
    name = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(name) if name else None


def known_passphrase() -> str:
    """The passphrase of this machine's keys: from the environment, else the service's credential; else empty."""
    folder = credentials_folder()
    if given := os.environ.get(VARIABLE, ""):
        return given
    if folder is not None and (folder / CREDENTIAL).is_file():
        return (folder / CREDENTIAL).read_text().strip()
    return ""


def to_pem(signer: CryptoSigner, passphrase: str = "") -> bytes:
    """The private key as PEM, locked when there is a passphrase."""
    if not passphrase:
        return signer.private_bytes
    key = load_pem_private_key(signer.private_bytes, None)
    return _lock(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), passphrase)


def from_pem(pem: bytes, passphrase: str, where: str) -> CryptoSigner:
    """The signer of a key file; `KeyMissingError` names the file and what to do."""
    locked = b"ENCRYPTED" in pem
    if locked and not passphrase:
        raise KeyMissingError(
            f"the key at {where} is locked: set {VARIABLE}, or give the service a credential {CREDENTIAL}"
        )
    try:
        key = load_pem_private_key(pem, passphrase.encode() if locked else None)
    except (ValueError, TypeError) as error:
        doubt = "is the passphrase right?" if locked else "it is no private key in PEM"
        raise KeyMissingError(f"the key at {where} cannot be read: {error}; {doubt}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyMissingError(f"the key at {where} is no Ed25519 key; make one with `landreeve-hub keys make`")
    return CryptoSigner(key)


def _lock(der: bytes, passphrase: str) -> bytes:
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    secret = Scrypt(salt, 32, _N, _R, _P).derive(passphrase.encode())
    padder = PKCS7(128).padder()
    encryptor = Cipher(AES(secret), CBC(iv)).encryptor()
    sealed = encryptor.update(padder.update(der) + padder.finalize()) + encryptor.finalize()
    kdf = _sequence(bytes.fromhex(_SCRYPT), _sequence(_octets(salt), _integer(_N), _integer(_R), _integer(_P)))
    cipher = _sequence(bytes.fromhex(_AES256_CBC), _octets(iv))
    info = _sequence(_sequence(bytes.fromhex(_PBES2), _sequence(kdf, cipher)), _octets(sealed))
    text = base64.b64encode(info)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    name = b"ENCRYPTED PRIVATE KEY"
    return b"\n".join([b"-----BEGIN " + name + b"-----", *lines, b"-----END " + name + b"-----", b""])


def _sequence(*parts: bytes) -> bytes:
    return _element(0x30, b"".join(parts))


def _octets(data: bytes) -> bytes:
    return _element(0x04, data)


def _integer(number: int) -> bytes:
    return _element(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _element(tag: int, body: bytes) -> bytes:
    """One DER element (X.690, 8.1); a key is short, so two bytes of length are enough."""
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + body
