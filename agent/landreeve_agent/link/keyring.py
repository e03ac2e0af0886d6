"""The box's key, its certificate and whom it trusts, changed together or not at all.

``keys/device.key``, ``device.crt`` and ``ca.crt`` are what everybody reads. At first they are files; from the first
renewal on they are links through ``keys/current`` to the folder of the pair in use, so one rename of that link
changes all three at once. The next pair is made complete in ``keys/next`` beside it. A kill at any moment leaves the
old pair or the new one in use, never a mixture.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from landreeve.blobs.durable import sync_folder, sync_tree, write_durably
from landreeve.trust.certs import BadCertificateError, Described, describe, fingerprint, parse, parse_all

from landreeve_agent.errors import StateError

KEY, CERTIFICATE, TRUST = "device.key", "device.crt", "ca.crt"
_FILES = (KEY, CERTIFICATE, TRUST)
_WANTED = "wanted.crt"


class KeyringError(StateError, ValueError):
    """A file in ``keys/`` cannot be used; the text says which and what to do."""


@dataclass(frozen=True)
class Keyring:
    """The folder ``keys/`` of a box."""

    folder: Path

    @property
    def next(self) -> Path:
        """Where the next pair is made: the same three files."""
        return self.folder / "next"

    @property
    def certificate(self) -> bytes:
        """The certificate in use, in PEM. `OSError` before there is one."""
        return (self.folder / CERTIFICATE).read_bytes()

    def described(self) -> Described:
        """What the certificate in use says. `OSError`, `landreeve.trust.certs.BadCertificateError`."""
        return describe(self.certificate, str(self.folder / CERTIFICATE))

    def key(self, folder: Path | None = None) -> ec.EllipticCurvePrivateKey:
        """The key in use, or of another pair. `OSError`, `KeyringError`."""
        return load_key((folder or self.folder) / KEY)

    def trusted(self) -> tuple[x509.Certificate, ...]:
        """The authorities this box trusts."""
        return tuple(parse_all((self.folder / TRUST).read_bytes(), str(self.folder / TRUST)))

    def is_of(self, authority: x509.Certificate) -> bool:
        """Whether the certificate in use was issued by that authority."""
        try:
            parse(self.certificate).verify_directly_issued_by(authority)
        except Exception:  # noqa: BLE001  cryptography raises what the mismatch happens to be
            return False
        return True

    # The next pair ----------------------------------------------------------------------------------------------

    def prepare(self) -> ec.EllipticCurvePrivateKey:
        """The key of the next pair: made now, unless an earlier attempt has made it."""
        self.next.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.next / KEY
        try:
            return load_key(path)
        except (OSError, KeyringError):
            key = new_key()
            (self.next / CERTIFICATE).unlink(missing_ok=True)
            write_key(path, key)
            return key

    def complete(self, certificate: str, trust: Iterable[x509.Certificate]) -> None:
        """Put the certificate for `prepare`'s key beside it, and whom to trust with it: the certificate last, since
        it says that the pair is complete."""
        write_durably(self.next / TRUST, bundle(trust), 0o600)
        write_durably(self.next / CERTIFICATE, certificate.encode(), 0o600)

    def copy(self, trust: Iterable[x509.Certificate]) -> None:
        """Make the next pair of the present key and certificate, with other authorities to trust."""
        self.discard()
        self.next.mkdir(mode=0o700)
        write_durably(self.next / KEY, (self.folder / KEY).read_bytes(), 0o600)
        self.complete(self.certificate.decode(), trust)

    def is_ready(self, now: datetime) -> bool:
        """Whether a next pair lies there complete and still good: an earlier attempt came that far."""
        try:
            key, certificate = self.key(self.next), parse((self.next / CERTIFICATE).read_bytes())
            trust = parse_all((self.next / TRUST).read_bytes())
        except (OSError, KeyringError, BadCertificateError):
            return False
        matches = certificate.public_key() == key.public_key()
        return matches and bool(trust) and certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc

    def discard(self) -> None:
        """Forget the next pair."""
        shutil.rmtree(self.next, ignore_errors=True)

    def promote(self) -> None:
        """The next pair is the one in use from now on."""
        self._link_once()
        name = "pair-" + describe((self.next / CERTIFICATE).read_bytes()).fingerprint[:16]
        if name == self._current():  # the same certificate with other authorities: a folder is never changed in use
            name += "-" + os.urandom(4).hex()
        shutil.rmtree(self.folder / name, ignore_errors=True)
        sync_tree(self.next)
        self.next.replace(self.folder / name)
        sync_folder(self.folder)
        self._point_at(name)
        self.tidy()

    def tidy(self) -> None:
        """Remove pairs that are not in use: what promotions, finished and interrupted, have left."""
        current = self._current()
        for path in self.folder.glob("pair-*"):
            if current and path.name != current:
                shutil.rmtree(path, ignore_errors=True)

    def _current(self) -> str:
        link = self.folder / "current"
        return Path(os.readlink(link)).name if link.is_symlink() else ""  # noqa: PTH115  the name, not where it leads

    def _point_at(self, name: str) -> None:
        fresh = self.folder / ".current.new"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(name)  # relative: the state folder may move
        fresh.replace(self.folder / "current")
        sync_folder(self.folder)

    def _link_once(self) -> None:
        """Turn the three files of a box that never renewed into links, each to the very content it had."""
        if not self._current():
            first = self.folder / "pair-first"
            shutil.rmtree(first, ignore_errors=True)
            first.mkdir(mode=0o700)
            for name in _FILES:
                write_durably(first / name, (self.folder / name).read_bytes(), 0o600)
            self._point_at(first.name)
        for name in _FILES:
            path = self.folder / name
            if not path.is_symlink():
                fresh = self.folder / f".{name}.new"
                fresh.unlink(missing_ok=True)
                fresh.symlink_to(Path("current", name))
                fresh.replace(path)
        sync_folder(self.folder)

    # Whom the hub wants trusted ---------------------------------------------------------------------------------

    def want(self, authorities: Iterable[str]) -> bool:
        """Remember whom the hub's document wants trusted, the newest last, and trust them from now on beside whoever
        is trusted already; whether that is news. `landreeve.trust.certs.BadCertificateError`."""
        pem = "".join(authorities).encode()
        wanted = parse_all(pem, "the document's authorities")
        path = self.folder / _WANTED
        if path.exists() and path.read_bytes() == pem:
            return False
        self.trust(wanted)
        write_durably(path, pem, 0o600)
        return True

    def trust(self, authorities: Iterable[x509.Certificate]) -> None:
        """Trust these as well."""
        both = _union(self.trusted(), authorities)
        if len(both) > len(self.trusted()):
            # Through the link, so that the file in the pair's folder changes and not the link.
            write_durably((self.folder / TRUST).resolve(), bundle(both), 0o600)

    def wanted(self) -> tuple[x509.Certificate, ...]:
        """Whom the hub wants trusted, the newest last; empty when it never said."""
        try:
            return tuple(parse_all((self.folder / _WANTED).read_bytes()))
        except (OSError, BadCertificateError):
            return ()

    def wanted_since(self) -> float:
        """When that was said, in unix seconds; 0 when never."""
        path = self.folder / _WANTED
        return path.stat().st_mtime if path.exists() else 0.0

    def is_surplus(self) -> bool:
        """Whether this box trusts someone whom the hub no longer names."""
        wanted = {fingerprint(one) for one in self.wanted()}
        return bool(wanted) and any(fingerprint(one) not in wanted for one in self.trusted())


def bundle(authorities: Iterable[x509.Certificate]) -> bytes:
    """Their certificates, one after another in PEM."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in authorities)


def merged(*groups: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """All of them, each once."""
    found: tuple[x509.Certificate, ...] = ()
    for group in groups:
        found = _union(found, group)
    return found


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Durably, for the owner alone."""
    write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file. `OSError`, `KeyringError`."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise KeyringError(f"{path} is no private key ({error}); remove it and join again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyringError(f"{path} is no P-256 key; remove it and join again")
    return key


def _union(one: Iterable[x509.Certificate], other: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    found = {fingerprint(certificate): certificate for certificate in (*one, *other)}
    return tuple(found.values())
