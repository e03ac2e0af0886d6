"""The fleet's certificate authority: who is a server of this hub, who is a device, who is the hub.

``ca/ca.{key,crt}`` is made once. ``ca/broker``, ``ca/https`` (servers) and ``ca/hub`` (the hub's own client) are
made when missing and renewed at start when fewer than `RENEW_DAYS` are left or their names changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from landreeve.blobs.durable import write_durably
from landreeve.trust.certs import BadCertificateError, describe, fingerprint, parse
from landreeve.wire.ids import check_id

from landreeve_hub.errors import OperatorError
from landreeve_hub.fleet.certificates import PrivateKey, PublicKey, authority_certificate, end_certificate, make_key

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_DAYS = 365
DEVICE_DAYS = 90
RENEW_DAYS = 30
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_CSR_BYTES = 16 * 1024


class AuthorityError(OperatorError):
    """The authority's files cannot be used; the text says which and what to do."""


class BadRequestError(ValueError):
    """A certificate signing request that is refused; the text says why."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Files of a key (0600) and its certificate."""

    key: Path
    certificate: Path


class Authority:
    """The authority under a hub's state folder."""

    def __init__(self, state: Path) -> None:
        self._folder = state / "ca"
        self.ca_path = self._folder / "ca.crt"
        self._key_path = self._folder / "ca.key"

    def init(self, now: datetime) -> None:
        """Make the authority when there is none. The key is written before the certificate, so a crash between
        the two leaves a key that is used at the next start."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.ca_path.exists():
            self._issuer()
            return
        key = _load_key(self._key_path) if self._key_path.exists() else _make_key(self._key_path)
        name = f"landreeve fleet authority {_key_id(key.public_key())[:8]}"
        write_durably(self.ca_path, _pem(authority_certificate(name, key, now, AUTHORITY_LIFETIME)))

    @property
    def ca_pem(self) -> str:
        """The authority's certificate."""
        return self._read(self.ca_path).decode()

    @property
    def ca_fingerprint(self) -> str:
        """sha256 of the authority's certificate in DER, as enrolment tokens carry it."""
        return fingerprint(parse(self._read(self.ca_path), str(self.ca_path)))

    def issue_server(self, name: str, now: datetime, hosts: Sequence[str] = (), days: int = SERVER_DAYS) -> KeyPair:
        """Key and certificate of a server of this hub (``broker``, ``https``), good for this machine's loopback
        names and ``hosts``; what is there is kept while it is good enough."""
        return self._issue(name, name, tuple(dict.fromkeys((*LOCAL_HOSTS, *hosts))), now, days)

    def issue_client(self, name: str, now: datetime, days: int = SERVER_DAYS) -> KeyPair:
        """Key and certificate with which a part of the hub speaks to the broker; ``name`` is its common name."""
        return self._issue(f"{check_id(name)}-client", name, (), now, days)

    def sign_device(self, csr_pem: str, device: str, now: datetime, days: int = DEVICE_DAYS) -> str:
        """A client certificate with the device as its common name, whatever subject the request asks for.

        `BadRequestError` when the request is none, is not signed by its own key, or the key is not P-256.
        """
        issuer = self._issuer()
        key = request_key(csr_pem)
        return _pem(end_certificate(check_id(device), key, issuer, (now, timedelta(days=days)))).decode()

    def _issue(self, file: str, name: str, hosts: tuple[str, ...], now: datetime, days: int) -> KeyPair:
        pair = KeyPair(self._folder / f"{file}.key", self._folder / f"{file}.crt")
        issuer = self._issuer()
        if not _is_good(pair, issuer[0], hosts, now):
            key = _load_key(pair.key) if pair.key.exists() else _make_key(pair.key)
            validity = (now, timedelta(days=days))
            write_durably(pair.certificate, _pem(end_certificate(name, key.public_key(), issuer, validity, hosts)))
        return pair

    def _issuer(self) -> tuple[x509.Certificate, PrivateKey]:
        certificate = parse(self._read(self.ca_path), str(self.ca_path))
        key = _load_key(self._key_path)
        if certificate.public_key() != key.public_key():
            raise AuthorityError(f"{self._key_path} is not the key of {self.ca_path}; restore both from one backup")
        return certificate, key

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise AuthorityError(f"{path} is missing; run `landreeve-hub init`, or restore it from a backup") from None


def request_key(csr_pem: str) -> PublicKey:
    """The key a request asks a certificate for; `BadRequestError` says what is wrong with the request."""
    if len(csr_pem) > MAX_CSR_BYTES:
        raise BadRequestError(f"the request has {len(csr_pem)} characters, at most {MAX_CSR_BYTES} are read")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadRequestError(f"the request is no certificate signing request in PEM: {error}") from error
    if not proven:
        raise BadRequestError("the request is not signed by the key it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadRequestError("the key in the request is not on the curve P-256")
    return key


def public_bytes(key: PublicKey) -> bytes:
    """The key in DER (SubjectPublicKeyInfo)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_good(pair: KeyPair, authority: x509.Certificate, hosts: tuple[str, ...], now: datetime) -> bool:
    """Whether the pair can be kept: ours, matching, naming exactly the hosts, and not about to expire."""
    try:
        pem = pair.certificate.read_bytes()
        certificate, key = parse(pem), _load_key(pair.key)
        certificate.verify_directly_issued_by(authority)
    except (OSError, AuthorityError, BadCertificateError, InvalidSignature, ValueError, TypeError):
        return False
    described = describe(pem)
    return (
        certificate.public_key() == key.public_key()
        and set(described.names) == set(hosts)
        and described.not_after - now >= timedelta(days=RENEW_DAYS)
    )


def _make_key(path: Path) -> PrivateKey:
    key = make_key()
    write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return key


def _load_key(path: Path) -> PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"private key {path} cannot be used: {error}; restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"private key {path} is no elliptic-curve key; restore it from a backup")
    return key


def _key_id(key: PublicKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
