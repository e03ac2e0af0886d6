"""What a certificate says: for the heartbeat's days to expiry, ``doctor``, and pinning."""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

_SECONDS_PER_DAY = 86_400.0


class BadCertificateError(ValueError):
    """Bytes that are no certificate in PEM; the text says which file."""


@dataclass(frozen=True, slots=True)
class Described:
    """A certificate in plain values. ``names`` are its DNS names and addresses, ``fingerprint`` the sha256 of
    its DER form in hex."""

    common_name: str
    issuer: str
    serial: str
    not_before: datetime
    not_after: datetime
    names: tuple[str, ...]
    fingerprint: str


def describe(pem: bytes, what: str = "certificate") -> Described:
    """What the first certificate in the PEM says; ``what`` names it in an error."""
    certificate = parse(pem, what)
    return Described(
        common_name=_common_name(certificate.subject),
        issuer=_common_name(certificate.issuer),
        serial=format(certificate.serial_number, "x"),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        names=_names(certificate),
        fingerprint=fingerprint(certificate),
    )


def parse(pem: bytes, what: str = "certificate") -> "x509.Certificate":
    """The first certificate in the PEM; `BadCertificateError` when there is none."""
    from cryptography import x509  # 8 MB, which a box that joined no hub does without

    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise BadCertificateError(f"{what}: this is no certificate in PEM ({error})") from error


def parse_all(pem: bytes, what: str = "certificates") -> "list[x509.Certificate]":
    """Every certificate in the PEM; `BadCertificateError` when there is none."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise BadCertificateError(f"{what}: no certificates in PEM ({error})") from error


def fingerprint(certificate: "x509.Certificate") -> str:
    """sha256 of the DER form, 64 lower-case hex digits."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def days_left(path: Path, now: datetime) -> float:
    """Days until the certificate in the file expires; negative when it has. `OSError`, `BadCertificateError`."""
    expires = parse(path.read_bytes(), str(path)).not_valid_after_utc
    return (expires - now).total_seconds() / _SECONDS_PER_DAY


def _common_name(name: "x509.Name") -> str:
    from cryptography.x509.oid import NameOID

    attributes = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attributes[0].value) if attributes else ""


def _names(certificate: "x509.Certificate") -> tuple[str, ...]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)
