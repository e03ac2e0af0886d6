"""Which certificate belongs to which device, and which are revoked: everything that was ever issued.

All within the caller's transaction, so that a certificate is known before it leaves the hub.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from landreeve.trust.certs import describe, parse
from landreeve.trust.keyprint import keyprint
from sqlalchemy import Connection, select, update

from landreeve_hub.audit.entry import Act
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.certificates import PublicKey
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.tables import certificates, devices

# A broker whose clock is behind must still refuse what expired a moment ago.
_KEEP_LISTED = timedelta(days=30)

Record = Callable[[Connection, datetime, Act], object]
"""Writes an act into the audit log within the caller's transaction: `landreeve_hub.audit.log.AuditLog.record_in`."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that is about to be given out."""

    pem: str
    device: str
    issuer: str
    serial: str
    key: str
    expires: datetime


def issue(authority: Authority, csr: str, device: str, now: datetime, days: float) -> Issued:
    """Sign a request; nothing is written. `landreeve_hub.fleet.authority.BadRequestError`."""
    pem = authority.sign_device(csr, device, now, days)
    certificate = parse(pem.encode())
    described = describe(pem.encode())
    issuer = authority.issuers()[-1]
    return Issued(pem, device, issuer, described.serial, key_of(certificate), described.not_after)


def key_of(certificate: x509.Certificate) -> str:
    """The fingerprint of a certificate's key, as people compare it."""
    key = certificate.public_key()
    return keyprint(key) if isinstance(key, PublicKey) else ""


def keep_in(connection: Connection, issued: Issued, now: datetime, record: Record, action: str, **data: str) -> None:
    """Remember the certificate, and that it is the device's newest; the log says that the device got it, and how."""
    row = {"serial": issued.serial, "device": issued.device, "issuer": issued.issuer, "key": issued.key}
    dates = {"issued": rfc3339(now), "expires": rfc3339(issued.expires)}
    connection.execute(certificates.insert().values({**row, **dates}))
    newest = {"certificate_serial": issued.serial, "certificate_expires": rfc3339(issued.expires)}
    connection.execute(update(devices).where(devices.c.id == issued.device).values(newest))
    what = {**data, "serial": issued.serial, "key": issued.key, "expires": rfc3339(issued.expires)}
    record(connection, now, Act(f"site:{issued.device}:enrolment", action, issued.device, data=what))


def revoke_in(connection: Connection, device: str, now: datetime, reason: str) -> int:
    """Revoke every certificate of the device that is not revoked already; how many there were."""
    own = (certificates.c.device == device) & (certificates.c.revoked == "")
    changed = connection.execute(update(certificates).where(own).values(revoked=rfc3339(now), reason=reason))
    return int(changed.rowcount)


def revoked(connection: Connection, now: datetime) -> dict[int, datetime]:
    """Serial numbers for the revocation list, and when each was revoked. What expired long ago is left out: every
    verifier refuses it anyway."""
    query = select(certificates.c.serial, certificates.c.revoked, certificates.c.expires)
    rows = connection.execute(query.where(certificates.c.revoked != "")).all()
    kept = (row for row in rows if not row.expires or parse_rfc3339(row.expires) > now - _KEEP_LISTED)
    return {int(row.serial, 16): parse_rfc3339(row.revoked) for row in kept}
