"""Building certificates that strict verifiers accept (RFC 5280; Python's ``VERIFY_X509_STRICT``).

Every one carries subject and authority key identifiers, key usage and *critical* basic constraints: Python 3.13
turns strictness on by default and rejects private authorities that leave one out (python/cpython#107361).
"""

import ipaddress
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE = timedelta(minutes=10)  # a box whose clock is a little behind must still accept what was just issued
PublicKey = ec.EllipticCurvePublicKey
PrivateKey = ec.EllipticCurvePrivateKey


def make_key() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def authority_certificate(name: str, key: PrivateKey, now: datetime, lifetime: timedelta) -> x509.Certificate:
    """A self-signed authority that may issue end certificates only (path length 0)."""
    builder = _builder(name, name, key.public_key(), now, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(_issued_by(key), critical=False)
    return builder.sign(key, hashes.SHA256())


def end_certificate(
    name: str,
    public_key: PublicKey,
    issuer: tuple[x509.Certificate, PrivateKey],
    validity: tuple[datetime, timedelta],
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """A certificate for ``name`` as common name: a server's when ``hosts`` (DNS names, addresses) are given,
    else a client's."""
    authority, key = issuer
    now, lifetime = validity
    # Nothing outlives its issuer: verifiers would accept it and then suddenly stop.
    lifetime = min(lifetime, authority.not_valid_after_utc - now)
    builder = _builder(name, _common_name(authority), public_key, now, lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(_issued_by(key), critical=False)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(key, hashes.SHA256())


def revocation_list(
    issuer: tuple[x509.Certificate, PrivateKey],
    revoked: Mapping[int, datetime],
    validity: tuple[datetime, timedelta],
    number: int,
) -> x509.CertificateRevocationList:
    """A complete list (RFC 5280 section 5) of serial numbers and when each was revoked. Serials of another issuer do
    no harm in it: a list speaks only of its own issuer's certificates."""
    authority, key = issuer
    now, lifetime = validity
    builder = x509.CertificateRevocationListBuilder(
        authority.subject, last_update=now - BACKDATE, next_update=now + lifetime
    )
    for serial, moment in sorted(revoked.items()):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment).build()
        builder = builder.add_revoked_certificate(entry)
    builder = builder.add_extension(_issued_by(key), critical=False)
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    return builder.sign(key, hashes.SHA256())


def _builder(
    name: str, issuer: str, public_key: PublicKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _issued_by(key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
