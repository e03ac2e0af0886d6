"""A device's next certificate: asked for with the present one, or, once that has expired, with its key.

Shaped as ``simplereenroll`` (RFC 7030 4.2.2): a request for a new key, over TLS that the present certificate has
authenticated. After expiry TLS would refuse it, so the old key signs a challenge instead. Neither needs the broker.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from landreeve.trust.certs import BadCertificateError, parse
from landreeve.trust.enrolment import RecoveryRequest, recovery_bytes
from sqlalchemy import Connection, select

from landreeve_hub.fleet import register
from landreeve_hub.fleet.authority import Authority, BadRequestError
from landreeve_hub.fleet.certificates import PublicKey
from landreeve_hub.fleet.enrolment import Rules
from landreeve_hub.fleet.register import Issued
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import parse_rfc3339
from landreeve_hub.store.tables import certificates, devices

CHALLENGE_S = 300.0


class Why(StrEnum):
    """Why no new certificate is given."""

    NO_CERTIFICATE = "no_certificate"
    UNKNOWN = "unknown_certificate"
    REVOKED = "revoked"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    TOO_LATE = "too_late"
    BAD_PROOF = "bad_proof"
    BAD_REQUEST = "bad_request"


@dataclass(frozen=True, slots=True)
class Renewed:
    """The next certificate (PEM) of a device. ``recovered`` when the former one had expired."""

    device: str
    certificate: str
    expires: datetime
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class NotRenewed:
    """The device keeps what it has."""

    why: Why
    sentence: str


class Challenges:
    """Fresh texts to sign. Nothing is stored: each carries its moment and this process's seal over it."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def make(self, now: datetime) -> str:
        moment = f"{int(now.timestamp())}.{secrets.token_hex(16)}"
        return f"{moment}.{self._seal(moment)}"

    def is_fresh(self, challenge: str, now: datetime) -> bool:
        """Whether this hub made it, minutes ago at most."""
        moment, _, seal = challenge.rpartition(".")
        if not hmac.compare_digest(self._seal(moment).encode(), seal.encode()):
            return False
        return 0 <= now.timestamp() - int(moment.partition(".")[0]) + 1 <= CHALLENGE_S

    def _seal(self, moment: str) -> str:
        return hmac.new(self._secret, moment.encode(), hashlib.sha256).hexdigest()


async def renew(  # noqa: PLR0917  what a caller has in hand
    store: Store,
    authority: Authority,
    peer: bytes | None,
    csr: str,
    now: datetime,
    rules: Rules,
    record: register.Record,
) -> Renewed | NotRenewed:
    """``peer`` is the certificate (DER) that authenticated the connection, None without one."""
    if peer is None:
        return NotRenewed(Why.NO_CERTIFICATE, "A certificate is renewed over a connection that shows the present one.")
    present = x509.load_der_x509_certificate(peer)
    return await _give(store, authority, present, csr, now, rules, record, recovered=False)


async def recover(  # noqa: PLR0917  what a caller has in hand
    store: Store,
    authority: Authority,
    challenges: Challenges,
    asked: RecoveryRequest,
    now: datetime,
    rules: Rules,
    record: register.Record,
) -> Renewed | NotRenewed:
    """A certificate for a device whose own has expired, when it still has the key."""
    try:
        certificate = parse(asked.certificate.encode(), "the expired certificate")
    except BadCertificateError as error:
        return NotRenewed(Why.BAD_REQUEST, f"{error}.")
    if not challenges.is_fresh(asked.challenge, now):
        return NotRenewed(Why.BAD_PROOF, "The challenge is not this hub's or is too old; ask for another one.")
    if not _is_signed(certificate, asked):
        return NotRenewed(Why.BAD_PROOF, "The signature is not by the key of that certificate.")
    late = now - certificate.not_valid_after_utc
    if late > timedelta(days=rules.recover_days):
        return NotRenewed(
            Why.TOO_LATE,
            f"The certificate expired {late.days} days ago; after {rules.recover_days:g} days a box joins again, with "
            "a token that replaces it (landreeve-hub device token SITE --replace).",
        )
    return await _give(store, authority, certificate, asked.csr, now, rules, record, recovered=True)


def _is_signed(certificate: x509.Certificate, asked: RecoveryRequest) -> bool:
    key = certificate.public_key()
    if not isinstance(key, PublicKey):
        return False
    try:
        key.verify(
            bytes.fromhex(asked.signature), recovery_bytes(asked.challenge, asked.csr), ec.ECDSA(hashes.SHA256())
        )
    except (InvalidSignature, ValueError):
        return False
    return True


async def _give(  # noqa: PLR0917  one private step of two callers
    store: Store,
    authority: Authority,
    certificate: x509.Certificate,
    csr: str,
    now: datetime,
    rules: Rules,
    record: register.Record,
    *,
    recovered: bool,
) -> Renewed | NotRenewed:
    """Judge the holder and sign, in one transaction, so that a revocation is before it or after it."""
    if not authority.vouches_for(certificate):
        return NotRenewed(Why.UNKNOWN, "The certificate is not of this fleet's authority; join again with a new token.")
    if not recovered and certificate.not_valid_after_utc <= now:
        return NotRenewed(Why.EXPIRED, "The certificate has expired; recover with a signed challenge.")

    def write(connection: Connection) -> Renewed | NotRenewed:
        holder = _holder(connection, certificate)
        if isinstance(holder, NotRenewed):
            return holder
        try:
            issued: Issued = register.issue(authority, csr, holder, now, rules.certificate_days)
        except BadRequestError as error:
            return NotRenewed(Why.BAD_REQUEST, f"The certificate request is refused: {error}.")
        action = "certificate.recover" if recovered else "certificate.renew"
        register.keep_in(connection, issued, now, record, action)
        return Renewed(holder, issued.pem, issued.expires, recovered)

    return await store.write(write)


def _holder(connection: Connection, certificate: x509.Certificate) -> str | NotRenewed:
    serial = format(certificate.serial_number, "x")
    joined = certificates.join(devices, devices.c.id == certificates.c.device)
    columns = (certificates.c.device, certificates.c.revoked, devices.c.revoked.label("ended"), devices.c.ended_reason)
    row = connection.execute(select(*columns).select_from(joined).where(certificates.c.serial == serial)).one_or_none()
    if row is None:
        return NotRenewed(Why.UNKNOWN, "This hub has not issued that certificate; join again with a new token.")
    if row.ended and row.ended_reason == "superseded":
        return NotRenewed(Why.SUPERSEDED, "Another box has taken this one's place; join again with a new token.")
    if row.ended or row.revoked:
        return NotRenewed(Why.REVOKED, "This device was revoked; only a person can let it in again, with a new token.")
    return str(row.device)


# How far the fleet has come in a roll of the authority ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moved:
    """One device in a roll. ``moved`` when it uses a certificate of the newest authority, as it told itself;
    ``issued`` when one was given out that it has not yet been heard with."""

    device: str
    site: str
    moved: bool
    issued: bool
    last_seen: str
    expires: str


def progress(connection: Connection, issuer: str) -> list[Moved]:
    """Where each device stands with regard to the authority with that fingerprint, those behind first."""
    rows = connection.execute(select(devices).where(~devices.c.revoked).order_by(devices.c.site)).all()
    own = connection.execute(select(certificates.c.serial).where(certificates.c.issuer == issuer)).scalars()
    serials = frozenset(own)
    found = [
        Moved(
            row.id,
            row.site,
            row.doc.get("certificate_serial", "") in serials,
            row.certificate_serial in serials,
            row.last_seen,
            row.certificate_expires,
        )
        for row in rows
    ]
    return sorted(found, key=lambda one: one.moved)


def days_until(text: str, now: datetime) -> float | None:
    """Days until a stored moment; None without one."""
    return (parse_rfc3339(text) - now).total_seconds() / 86_400 if text else None
