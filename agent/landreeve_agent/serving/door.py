"""How the inference server stands open: on loopback to every program, elsewhere over TLS and with a token."""

import hashlib
import logging
import ssl
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from landreeve_agent.config import Serving, StateFolder
from landreeve_agent.errors import StateError
from landreeve_agent.serving.access import is_loopback, tls_context
from landreeve_agent.serving.control import CERTIFICATE, KEY
from landreeve_agent.serving.errors import LoadFailedError

logger = logging.getLogger(__name__)
_MAKE_S = 60.0


@dataclass(frozen=True)
class Door:
    """What the worker is started with and what callers need. Without ``certificate`` it speaks plain HTTP.

    ``problem`` says why the certificate is not the one the settings name.
    """

    certificate: Path | None = None
    key: Path | None = None
    tokens: tuple[Path, ...] = ()
    problem: str = ""

    @property
    def scheme(self) -> str:
        """Of the server's URL."""
        return "https" if self.certificate else "http"

    def headers(self) -> dict[str, str]:
        """What a request must carry."""
        return {"Authorization": f"Bearer {self.tokens[0].read_text().strip()}"} if self.tokens else {}

    def trust(self) -> ssl.SSLContext | bool:
        """How a client on this box knows the server: by exactly its certificate, whatever its name."""
        if self.certificate is None:
            return True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.certificate)
        return context

    def sentences(self) -> tuple[str, ...]:
        """What to tell who connects from elsewhere."""
        if self.certificate is None:
            return ()
        return (
            f"callers need a token (landreeve token show app) and trust {self.certificate}",
            f"SHA-256 fingerprint {fingerprint(self.certificate)}",
        )


def door(settings: Serving, state: StateFolder) -> Door:
    """The door that the settings ask for; makes a certificate when none is given. Raises `StateError`."""
    if is_loopback(settings.host):
        return Door()
    tokens = (state.tokens / "app", state.tokens / "api")
    problem = ""
    if settings.tls_cert or settings.tls_key:
        try:
            tls_context(settings.tls_cert, settings.tls_key)
        except LoadFailedError as error:
            # Still TLS, still a token: a wrong path must neither open the server nor take it away.
            problem = f"{error.sentence}: a self-signed certificate is used instead"
            logger.warning("%s", problem)
        else:
            return Door(Path(settings.tls_cert), Path(settings.tls_key), tokens)
    folder = state.root / "keys"
    _make(folder, settings.host)
    return Door(folder / CERTIFICATE, folder / KEY, tokens, problem)


def _make(folder: Path, host: str) -> None:
    command = [sys.executable, "-m", "landreeve_agent.serving.certificate", str(folder), host]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MAKE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StateError(f"serving.host {host}: no certificate could be made within {_MAKE_S:g} s") from error
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise StateError(f"serving.host {host}: no certificate could be made in {folder}: {words}")


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the first certificate in the file, as browsers and openssl show it."""
    pem = certificate.read_text(encoding="ascii")
    first = pem[: pem.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN") :])).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
