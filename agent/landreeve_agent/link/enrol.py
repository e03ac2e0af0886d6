"""Joining a fleet: from a token to a certificate, every failing step named.

The private key is made here and never leaves. ``identity.json`` is written last: until then nothing has
happened, and joining again with the same token continues with the same key, so an answer lost on the way costs
nothing.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import httpx2
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from landreeve.blobs.durable import write_durably
from landreeve.trust.anchor import install
from landreeve.trust.certs import describe, parse
from landreeve.trust.enrolment import EnrolmentAnswer, EnrolmentProblem, EnrolmentRequest
from landreeve.trust.token import EnrolmentToken, parse_token

from landreeve_agent.errors import OperatorError
from landreeve_agent.link.identity import Identity, keys_folder, load_identity, save_identity, trust_folder

TIMEOUT_S = 20.0
_MAX_CA_BYTES = 64 * 1024


class Step(StrEnum):
    """The steps of joining, in order."""

    TOKEN = "read the token"  # noqa: S105  a step's name
    FETCH = "fetch the hub's certificate"
    PIN = "check the hub's certificate against the token"
    KEY = "make this box's key"
    ENROL = "ask the hub for a certificate"
    CHECK = "check the hub's answer"
    STORE = "store the identity"


class JoinError(OperatorError):
    """Joining stopped at ``step``; nothing was changed that stands in the way of trying again."""

    def __init__(self, step: Step, sentence: str) -> None:
        self.step = step
        self.sentence = sentence
        super().__init__(f"could not {step.value}: {sentence}")


def join(state: Path, token_text: str, now: datetime) -> Identity:
    """Enrol this box with its fleet and keep what it learns under ``state``; `JoinError` names the step."""
    with _step(Step.TOKEN):
        token = _token(state, token_text)
    with _step(Step.FETCH):
        ca = _fetch_authority(token)
    with _step(Step.PIN):
        _check_pin(ca, token)
    with _step(Step.KEY):
        key = _key(keys_folder(state))
    with _step(Step.ENROL):
        answer = _ask(token, ca, _request(key, token.site))
    with _step(Step.CHECK):
        _check(answer, key, ca, now)
    with _step(Step.STORE):
        return _store(state, token, answer)


@contextmanager
def _step(step: Step) -> Iterator[None]:
    """Names the step of whatever expected goes wrong in it."""
    try:
        yield
    except (OSError, ValueError, httpx2.HTTPError, _RefusedError) as error:
        raise JoinError(step, _sentence(error)) from error


class _RefusedError(Exception):
    """The hub answered, and the answer is no."""


def _sentence(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"the hub's certificate is not accepted ({text}); check this box's clock and the hub's address"
    if isinstance(error, httpx2.TransportError):
        return f"the hub does not answer ({text}); check the address in the token, the network and the firewall"
    return text


def _token(state: Path, text: str) -> EnrolmentToken:
    identity = load_identity(state)
    if identity is not None:
        raise ValueError(
            f"this box has already joined as {identity.device} ({identity.site}); use another state folder"
        )
    return parse_token(text)


def _fetch_authority(token: EnrolmentToken) -> bytes:
    # Unverified on purpose: nobody is trusted yet. What arrives is public and is used only if the token knows it.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with httpx2.Client(verify=context, timeout=TIMEOUT_S, trust_env=False) as client:
        response = client.get(f"{token.url.rstrip('/')}/enrol/v1/ca")
    if response.status_code != httpx2.codes.OK or len(response.content) > _MAX_CA_BYTES:
        raise _RefusedError(
            f"{token.url} answers {response.status_code} and {len(response.content)} bytes; is it a Landreeve hub?"
        )
    return response.content


def _check_pin(ca: bytes, token: EnrolmentToken) -> None:
    found = describe(ca, f"the certificate at {token.url}").fingerprint
    if found != token.ca:
        raise ValueError(
            f"the certificate at {token.url} has fingerprint {found[:16]}…, the token says {token.ca[:16]}…: someone "
            "may stand between this box and the hub, or the hub was set up anew. The token's secret was not sent"
        )


def _key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The device's key, made now unless an earlier attempt has made it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "device.key"
    if path.exists():
        key = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{path} is no P-256 key; remove it and join again")
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    write_durably(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return key


def _request(key: ec.EllipticCurvePrivateKey, site: str) -> str:
    # The subject is only a courtesy to whoever reads a log: the hub names the device itself.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def _ask(token: EnrolmentToken, ca: bytes, csr: str) -> EnrolmentAnswer:
    context = ssl.create_default_context(cadata=ca.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    body = msgspec.json.encode(EnrolmentRequest(secret=token.secret, csr=csr))
    headers = {"content-type": "application/json"}
    with httpx2.Client(verify=context, timeout=TIMEOUT_S, trust_env=False) as client:
        response = client.post(f"{token.url.rstrip('/')}/enrol/v1/enrol", content=body, headers=headers)
    if response.status_code != httpx2.codes.OK:
        raise _RefusedError(_problem(response))
    return msgspec.json.decode(response.content, type=EnrolmentAnswer)


def _problem(response: httpx2.Response) -> str:
    try:
        problem = msgspec.json.decode(response.content, type=EnrolmentProblem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = EnrolmentProblem()
    return problem.detail or f"the hub answers {response.status_code} without a reason; see its log"


def _check(answer: EnrolmentAnswer, key: ec.EllipticCurvePrivateKey, ca: bytes, now: datetime) -> None:
    certificate = parse(answer.certificate.encode(), "the hub's answer")
    described = describe(answer.certificate.encode())
    if certificate.public_key() != key.public_key():
        raise ValueError("the certificate is not for this box's key")
    if described.common_name != answer.device:
        raise ValueError(f"the certificate names {described.common_name!r}, the answer {answer.device!r}")
    if describe(answer.ca.encode(), "the hub's answer").fingerprint != describe(ca).fingerprint:
        raise ValueError("the answer carries another authority than the one the token names")
    if not described.not_before <= now < described.not_after:
        raise ValueError(
            f"the certificate is valid from {described.not_before:%Y-%m-%d %H:%M} to {described.not_after:%Y-%m-%d} "
            f"UTC, this box's clock says {now:%Y-%m-%d %H:%M}; set the clock and join again with the same token"
        )


def _store(state: Path, token: EnrolmentToken, answer: EnrolmentAnswer) -> Identity:
    roots = {"director": answer.director_root, "targets": answer.targets_root}
    install(trust_folder(state), roots, datetime.fromisoformat(answer.hub_time).astimezone(UTC))
    write_durably(keys_folder(state) / "ca.crt", answer.ca.encode(), 0o600)
    write_durably(keys_folder(state) / "device.crt", answer.certificate.encode(), 0o600)
    identity = Identity(
        device=answer.device,
        fleet=answer.fleet,
        site=answer.site,
        hub_url=token.url,
        broker_host=answer.broker_host,
        broker_port=answer.broker_port,
    )
    save_identity(state, identity)
    return identity
