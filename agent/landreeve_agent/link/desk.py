"""Asking the hub's enrolment desk over HTTPS: one way to ask, and what a refusal says."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from landreeve.trust.enrolment import EnrolmentProblem

TIMEOUT_S = 20.0
T = TypeVar("T", bound=msgspec.Struct)


class RefusedError(Exception):
    """The hub answered, and the answer is no: its reason in a word and a sentence."""

    def __init__(self, sentence: str, reason: str = "") -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Desk:
    """The desk of one hub. ``context`` says whom to believe, and what to show."""

    url: str
    context: ssl.SSLContext

    def post(self, path: str, body: msgspec.Struct | None = None) -> httpx2.Response:
        """Ask; `RefusedError` for a problem, `httpx2.HTTPError` when nobody answers."""
        content = b"{}" if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        with httpx2.Client(verify=self.context, timeout=TIMEOUT_S, trust_env=False) as client:
            answer = client.post(f"{self.url.rstrip('/')}/enrol/v1/{path}", content=content, headers=headers)
        if answer.status_code >= httpx2.codes.BAD_REQUEST:
            raise refusal(answer)
        return answer

    def ask(self, path: str, body: msgspec.Struct | None, kind: type[T]) -> T:
        """The answer as a value."""
        return msgspec.json.decode(self.post(path, body).content, type=kind)


def refusal(answer: httpx2.Response) -> RefusedError:
    """What an answer that is no good says."""
    try:
        problem = msgspec.json.decode(answer.content, type=EnrolmentProblem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = EnrolmentProblem()
    text = problem.detail or f"the hub answers {answer.status_code} without a reason; see its log"
    return RefusedError(text, problem.reason)


def believing(ca: bytes, pair: Path | None = None) -> ssl.SSLContext:
    """Believes these authorities alone, strictly; shows the pair in that folder when one is given."""
    context = ssl.create_default_context(cadata=ca.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if pair is not None:
        context.load_cert_chain(pair / "device.crt", pair / "device.key")
    return context


def sentence(error: Exception) -> str:
    """What went wrong, in words that say what to look at."""
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the hub's certificate is not accepted ({text}); check this box's clock and the hub's address"
    if isinstance(error, httpx2.TransportError):
        return f"the hub does not answer ({text}); check the address in the token, the network and the firewall"
    return text


def request_for(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """A certificate signing request in PEM. The name is a courtesy to whoever reads a log: the hub names devices."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()
