"""The fleet's certificate authority: who is a server of this hub, who is a device, who is the hub.

``ca/ca.{key,crt}`` is made once. ``ca/broker``, ``ca/https`` (servers) and ``ca/hub`` (the hub's own client) are
made when missing and renewed at start when fewer than `RENEW_DAYS` are left or their names changed.

While the authority is rolled there are two. ``ca/next.{key,crt}`` is what devices are issued from then on, while
``ca/ca`` still vouches for the servers, because a device that was away knows only that one. ``ca/trust.crt`` holds
both: whoever verifies a device uses it. `finish` makes the next one the only one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from landreeve.blobs.durable import sync_folder, write_durably
from landreeve.trust.certs import BadCertificateError, describe, fingerprint, parse, parse_all
from landreeve.trust.keyprint import public_bytes as public_bytes  # noqa: PLC0414  long known under this name
from landreeve.wire.ids import check_id

from landreeve_hub.errors import OperatorError
from landreeve_hub.fleet.certificates import (
    PrivateKey,
    PublicKey,
    authority_certificate,
    end_certificate,
    make_key,
    revocation_list,
)

AUTHORITY_LIFETIME = timedelta(days=3650)
SERVER_DAYS = 365
DEVICE_DAYS = 90
RENEW_DAYS = 30
CRL_LIFETIME = timedelta(days=180)
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
MAX_CSR_BYTES = 16 * 1024
Issuer = tuple[x509.Certificate, PrivateKey]


class AuthorityError(OperatorError):
    """The authority's files cannot be used; the text says which and what to do."""


class RollError(ValueError):
    """The authority cannot be rolled, or the roll not finished, as things stand; the text says why."""


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
        self.trust_path = self._folder / "trust.crt"
        self.crl_path = self._folder / "crl.pem"
        self._next_path = self._folder / "next.crt"

    def init(self, now: datetime) -> None:
        """Make the authority when there is none. The key is written before the certificate, so a crash between
        the two leaves a key that is used at the next start; a `finish` that was cut off is brought to its end."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._next_path.exists() and not self._next_path.with_suffix(".key").exists():
            self._next_path.replace(self.ca_path)
        if self.ca_path.exists():
            self._issuer(self.ca_path)
        else:
            self._make(self.ca_path, now)
        self._write_trust()
        if not self.crl_path.exists():
            self.write_crl({}, now)

    @property
    def ca_pem(self) -> str:
        """The certificate of the authority that vouches for this hub's servers."""
        return _read(self.ca_path).decode()

    @property
    def ca_fingerprint(self) -> str:
        """sha256 of that certificate in DER, as enrolment tokens carry it."""
        return fingerprint(parse(_read(self.ca_path), str(self.ca_path)))

    @property
    def trusted_pem(self) -> str:
        """Every authority a device should trust, the servers' own first."""
        return "".join(_read(path).decode() for path in self._paths())

    @property
    def rolling(self) -> bool:
        """Whether devices are on their way from one authority to the next."""
        return self._next_path.exists()

    @property
    def rolled(self) -> bool:
        """Whether this is not the first authority, or will not stay it: then devices are told whom to trust."""
        return self.rolling or any(self._folder.glob("former-*.crt"))

    def issuers(self) -> tuple[str, ...]:
        """The fingerprints of the authorities in force: one, or two while rolling; devices are issued by the last."""
        return tuple(fingerprint(parse(_read(path), str(path))) for path in self._paths())

    def issue_server(self, name: str, now: datetime, hosts: Sequence[str] = (), days: int = SERVER_DAYS) -> KeyPair:
        """Key and certificate of a server of this hub (``broker``, ``https``), good for this machine's loopback
        names and ``hosts``; what is there is kept while it is good enough."""
        return self._issue(name, name, tuple(dict.fromkeys((*LOCAL_HOSTS, *hosts))), now, days)

    def issue_client(self, name: str, now: datetime, days: int = SERVER_DAYS) -> KeyPair:
        """Key and certificate with which a part of the hub speaks to the broker; ``name`` is its common name."""
        return self._issue(f"{check_id(name)}-client", name, (), now, days)

    def stand_in(self, device: str, now: datetime) -> tuple[bytes, bytes]:
        """Key and certificate (PEM) in the name of a device, good for minutes and kept nowhere: with it the hub
        takes a revoked device's live session over, which ends it."""
        key = make_key()
        issuer = self._issuer(self._paths()[-1])
        certificate = end_certificate(check_id(device), key.public_key(), issuer, (now, timedelta(minutes=10)))
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), _pem(certificate)

    def sign_device(self, csr_pem: str, device: str, now: datetime, days: float = DEVICE_DAYS) -> str:
        """A client certificate with the device as its common name, whatever subject the request asks for.

        `BadRequestError` when the request is none, is not signed by its own key, or the key is not P-256.
        """
        issuer = self._issuer(self._paths()[-1])
        key = request_key(csr_pem)
        return _pem(end_certificate(check_id(device), key, issuer, (now, timedelta(days=days)))).decode()

    def vouches_for(self, certificate: x509.Certificate) -> str:
        """The fingerprint of the authority in force that issued it, whatever its dates; empty when none did."""
        for path in self._paths():
            authority = parse(_read(path), str(path))
            try:
                certificate.verify_directly_issued_by(authority)
            except (InvalidSignature, ValueError, TypeError):
                continue
            return fingerprint(authority)
        return ""

    def write_crl(self, revoked: Mapping[int, datetime], now: datetime) -> None:
        """Sign the revocation lists anew: one of each authority in force, since brokers look for the issuer's own.

        An expired list would lock everybody out: they are good for `CRL_LIFETIME` and are signed anew daily.
        """
        issuers = [self._issuer(path) for path in self._paths()]
        number = int(now.timestamp())  # it must grow; seconds do
        lists = [revocation_list(issuer, revoked, (now, CRL_LIFETIME), number) for issuer in issuers]
        write_durably(self.crl_path, b"".join(one.public_bytes(Encoding.PEM) for one in lists))

    def crl_times(self) -> tuple[datetime, datetime]:
        """When the oldest of the revocation lists was signed, and when the first of them expires."""
        pem = _read(self.crl_path)
        parts = [
            part + b"-----END X509 CRL-----\n" for part in pem.split(b"-----END X509 CRL-----") if b"BEGIN" in part
        ]
        lists = [x509.load_pem_x509_crl(part) for part in parts]
        return (
            min(one.last_update_utc for one in lists),
            min(one.next_update_utc for one in lists if one.next_update_utc is not None),
        )

    # The roll ---------------------------------------------------------------------------------------------------

    def roll(self, now: datetime) -> None:
        """Begin a new authority beside the present one; `RollError` when one has begun already."""
        if self.rolling:
            raise RollError("a new authority has begun already; see `landreeve-hub ca status`")
        self._make(self._next_path, now)
        self._write_trust()

    def finish(self, now: datetime) -> None:
        """The new authority becomes the only one; `RollError` when none has begun. Servers must be issued anew.

        Interrupted anywhere, `init` finishes it: the key moves before the certificate.
        """
        if not self.rolling:
            raise RollError("no new authority has begun; `landreeve-hub ca roll` begins one")
        pem = _read(self.ca_path)
        write_durably(self._folder / f"former-{describe(pem).fingerprint[:16]}.crt", pem)
        self._next_path.with_suffix(".key").replace(self.ca_path.with_suffix(".key"))
        sync_folder(self._folder)
        self._next_path.replace(self.ca_path)
        sync_folder(self._folder)
        self._write_trust()

    def _paths(self) -> tuple[Path, ...]:
        return (self.ca_path, self._next_path) if self.rolling else (self.ca_path,)

    def _make(self, path: Path, now: datetime) -> None:
        key_path = path.with_suffix(".key")
        key = _load_key(key_path) if key_path.exists() else _make_key(key_path)
        name = f"landreeve fleet authority {_key_id(key.public_key())[:8]}"
        write_durably(path, _pem(authority_certificate(name, key, now, AUTHORITY_LIFETIME)))

    def _write_trust(self) -> None:
        pem = self.trusted_pem.encode()
        if not self.trust_path.exists() or self.trust_path.read_bytes() != pem:
            write_durably(self.trust_path, pem)

    def _issue(self, file: str, name: str, hosts: tuple[str, ...], now: datetime, days: int) -> KeyPair:
        pair = KeyPair(self._folder / f"{file}.key", self._folder / f"{file}.crt")
        issuer = self._issuer(self.ca_path)
        if not _is_good(pair, issuer[0], hosts, now):
            key = _load_key(pair.key) if pair.key.exists() else _make_key(pair.key)
            validity = (now, timedelta(days=days))
            write_durably(pair.certificate, _pem(end_certificate(name, key.public_key(), issuer, validity, hosts)))
        return pair

    def _issuer(self, path: Path) -> Issuer:
        certificate = parse(_read(path), str(path))
        key_path = path.with_suffix(".key")
        key = _load_key(key_path)
        if certificate.public_key() != key.public_key():
            raise AuthorityError(f"{key_path} is not the key of {path}; restore both from one backup")
        return certificate, key


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


def authorities(pem: str) -> tuple[str, ...]:
    """The certificates of a bundle, one text each."""
    return tuple(_pem(one).decode() for one in parse_all(pem.encode()))


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise AuthorityError(f"{path} is missing; run `landreeve-hub init`, or restore it from a backup") from None


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
