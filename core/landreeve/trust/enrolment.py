"""What a box and the hub say to each other over HTTPS: when the box joins, and when its certificate is renewed."""

import hashlib

import msgspec


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``csr`` is a PKCS#10 request in PEM, signed by the key the box has just made (P-256)."""

    secret: str
    csr: str
    generation: int = 0
    """The highest generation of a document the box has believed: what it is told from now on is above that."""

    def __repr__(self) -> str:
        return "EnrolmentRequest(...)"


class EnrolmentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Who the box is from now on. Certificates are PEM, roots are TUF metadata, ``hub_time`` is RFC 3339."""

    device: str
    site: str
    fleet: str
    certificate: str
    ca: str
    broker_host: str
    broker_port: int
    director_root: str
    targets_root: str
    hub_time: str


class EnrolmentWaiting(msgspec.Struct, frozen=True, kw_only=True):
    """The answer (202) while a person has not yet decided; the box asks again with the same request.

    ``fingerprint`` is the hub's view of the box's key (`landreeve.trust.keyprint`). ``detail`` is what a box that
    does not know this answer shows.
    """

    detail: str
    fingerprint: str
    retry_s: float = 2.0


class RenewalRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``csr`` is for the new key. The connection itself is proof of the old one (mTLS), as in RFC 7030 4.2.2."""

    csr: str


class RecoveryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Renewal after the certificate expired: TLS would refuse it, so the old key signs `recovery_bytes` (ECDSA with
    sha256, DER in hex). ``certificate`` is the expired one in PEM, ``challenge`` the hub's own, at most minutes old."""

    certificate: str
    csr: str
    challenge: str
    signature: str


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """Something fresh to sign."""

    challenge: str


class RenewalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``ca`` holds every authority the device should trust from now on, in PEM, the servers' own first."""

    certificate: str
    ca: str
    hub_time: str


def recovery_bytes(challenge: str, csr: str) -> bytes:
    """What is signed: it names its purpose, the challenge, and the one request it may be used for."""
    return f"landreeve recovery v1\n{challenge}\n{hashlib.sha256(csr.encode()).hexdigest()}\n".encode()


class EnrolmentProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a box was refused (RFC 9457)."""

    reason: str = ""
    detail: str = ""
