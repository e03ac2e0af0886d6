"""A certificate for an inference server that nobody gave one: self-signed, to be trusted by its fingerprint.

``python -m landreeve_agent.serving.certificate FOLDER HOST…`` makes ``serving.crt`` and ``serving.key`` there unless
a valid pair is there already. A process of its own, because the library would stay in the supervisor's memory for
ever. The device's own certificate does not serve here: the hub signs it for clients only (RFC 5280, 4.2.1.12).
"""

import datetime as dt
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from landreeve_agent.serving.control import CERTIFICATE, KEY

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

VALID_DAYS = 3650
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_WILDCARDS = {"0.0.0.0", "::"}  # noqa: S104 - told apart, not bound


def is_valid(folder: Path, now: dt.datetime) -> bool:
    """Whether the pair in the folder belongs together and has not expired."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
        key = load_pem_private_key((folder / KEY).read_bytes(), None)
    except (OSError, ValueError):
        return False
    return certificate.public_key() == key.public_key() and now < certificate.not_valid_after_utc


def make(folder: Path, hosts: tuple[str, ...], now: dt.datetime) -> None:
    """Write a new key and a certificate of it for these names and addresses."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "landreeve inference")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))  # a client's clock may be behind
        .not_valid_after(now + dt.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _write(folder / CERTIFICATE, certificate.public_bytes(Encoding.PEM))


def names(bound: str) -> tuple[str, ...]:
    """What callers may call this box: its own names, its host name, and the address bound or all it has."""
    found = [*_OWN_NAMES, socket.gethostname()]
    if bound in _WILDCARDS:
        import psutil

        inet = {socket.AF_INET, socket.AF_INET6}
        addresses = [a for every in psutil.net_if_addrs().values() for a in every if a.family in inet]
        found += [address.address.partition("%")[0] for address in addresses]
    else:
        found.append(bound)
    return tuple(dict.fromkeys(found))


def _general(host: str) -> "GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def main(folder: Path, bound: str) -> None:
    """Make the pair if there is none."""
    now = dt.datetime.now(dt.UTC)
    if not is_valid(folder, now):
        make(folder, names(bound), now)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
