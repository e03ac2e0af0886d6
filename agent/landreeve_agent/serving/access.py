"""Who may ask the inference server, once it is bound beyond the box itself.

On a loopback address every program of the box may ask, as it may read the box's files. On any other address each
request carries the box's application token (RFC 6750, section 2.1) over TLS. It is checked as soon as the headers
are read: a stranger's body is neither waited for nor decoded.
"""

import hmac
import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from landreeve_agent.serving.errors import LoadFailedError, ServingError, UnauthorizedError

# Asked by load balancers and probes, which hold no token; they tell nothing but that somebody lives here.
OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
_HOW = "send the header Authorization: Bearer TOKEN (on the box: landreeve token show app)"


@dataclass(frozen=True, slots=True)
class Access:
    """The tokens that open the server; with none it stands open (loopback)."""

    tokens: tuple[bytes, ...] = ()

    def refuses(self, headers: Mapping[bytes, bytes], path: str) -> ServingError | None:
        """Why a request with these headers (names in lower case) may not be answered; None when it may."""
        if not self.tokens or path in OPEN_PATHS:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer":
            return UnauthorizedError(f"authorization: a token is needed here; {_HOW}")
        return None if self.holds(given.strip()) else UnauthorizedError(f"authorization: not this box's token; {_HOW}")

    def holds(self, given: bytes) -> bool:
        """Whether that is one of the tokens, in the same time for every wrong one."""
        return any(hmac.compare_digest(given, token) for token in self.tokens)


def is_loopback(host: str) -> bool:
    """Whether only this box can reach a server bound to that address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name: where it leads is not ours to guess


def read_access(files: Sequence[str]) -> Access:
    """The access that the token files give; `LoadFailedError` when one of them holds none."""
    tokens = []
    for name in files:
        try:
            token = Path(name).read_bytes().strip()
        except OSError as error:
            raise LoadFailedError("no_token", f"{name}: {error.strerror}") from error
        if not token:
            raise LoadFailedError("no_token", f"{name}: empty; delete it and restart the agent to make a new one")
        tokens.append(token)
    return Access(tuple(tokens))


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """What the server proves itself with, TLS 1.2 or newer; `LoadFailedError` when the files do not serve."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise LoadFailedError(
            "bad_certificate",
            f"serving.tls_cert {certificate} with serving.tls_key {key}: {error}",
        ) from error
    return context
