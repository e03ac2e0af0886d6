"""What a box and the hub say to each other once, over HTTPS, when the box joins."""

import msgspec


class EnrolmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """``csr`` is a PKCS#10 request in PEM, signed by the key the box has just made (P-256)."""

    secret: str
    csr: str

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


class EnrolmentProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a box was refused (RFC 9457)."""

    reason: str = ""
    detail: str = ""
