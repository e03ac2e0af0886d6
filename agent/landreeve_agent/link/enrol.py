"""Joining a fleet: from a token to a certificate, every failing step named.

The private key is made here and never leaves. ``identity.json`` is written last: until then nothing has
happened, and joining again with the same token continues with the same key, so an answer lost on the way costs
nothing. A hub whose people look at every key first answers that it waits: then the same is asked again until they
have decided.

A box that is a device already may become another one (`again`): its disk was cloned, or it was revoked. The new pair
is made beside the old one, as in a renewal.
"""

import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import httpx2
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from landreeve.blobs.durable import write_durably
from landreeve.trust.anchor import install
from landreeve.trust.certs import BadCertificateError, describe, fingerprint, parse, parse_all
from landreeve.trust.enrolment import EnrolmentAnswer, EnrolmentRequest, EnrolmentWaiting
from landreeve.trust.keyprint import keyprint
from landreeve.trust.token import EnrolmentToken, parse_token

from landreeve_agent.errors import OperatorError
from landreeve_agent.link.desk import TIMEOUT_S, Desk, RefusedError, believing, request_for, sentence
from landreeve_agent.link.identity import Identity, keys_folder, load_identity, save_identity, trust_folder
from landreeve_agent.link.keyring import Keyring, load_key, new_key, write_key

_MAX_CA_BYTES = 64 * 1024
_FLOOR = "floor.json"


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


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to ask again while people at the hub decide, and who is told the key's fingerprint meanwhile."""

    seconds: float = 0.0
    told: Callable[[str, str], None] = lambda _sentence, _fingerprint: None
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Former:
    """What a box brings along that is a device already. ``generation`` is the highest it has believed."""

    generation: int = 0


NO_PATIENCE = Patience()


def join(
    state: Path, token_text: str, now: datetime, *, patience: Patience = NO_PATIENCE, again: Former | None = None
) -> Identity:
    """Enrol this box with its fleet and keep what it learns under ``state``; `JoinError` names the step."""
    with _step(Step.TOKEN):
        token = _token(state, token_text, again)
    with _step(Step.FETCH):
        ca = _fetch_authority(token)
    with _step(Step.PIN):
        _check_pin(ca, token)
    with _step(Step.KEY):
        key = _key(keys_folder(state)) if again is None else _other_key(state)
    with _step(Step.ENROL):
        asked = EnrolmentRequest(
            secret=token.secret, csr=request_for(key, token.site), generation=again.generation if again else 0
        )
        answer = _ask(token, ca, asked, keyprint(key.public_key()), patience)
    with _step(Step.CHECK):
        _check(answer, key, ca, now)
    with _step(Step.STORE):
        return _store(state, token, answer, again=again is not None)


@contextmanager
def _step(step: Step) -> Iterator[None]:
    """Names the step of whatever expected goes wrong in it."""
    try:
        yield
    except (OSError, ValueError, httpx2.HTTPError, RefusedError) as error:
        raise JoinError(step, sentence(error)) from error


def _token(state: Path, text: str, again: Former | None) -> EnrolmentToken:
    identity = load_identity(state)
    if identity is not None and again is None:
        raise ValueError(
            f"this box has already joined as {identity.device} ({identity.site}); use another state folder, or, to "
            "make it another device, stop the agent and add --again"
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
        raise RefusedError(
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
        return load_key(path)
    key = new_key()
    write_key(path, key)
    return key


def _other_key(state: Path) -> ec.EllipticCurvePrivateKey:
    """The key of the device this box becomes. When an earlier attempt came as far as putting it to use, that one."""
    keyring, identity = Keyring(keys_folder(state)), load_identity(state)
    try:
        if identity is not None and keyring.described().common_name != identity.device:
            return keyring.key()
    except (OSError, BadCertificateError):
        return keyring.prepare()
    return keyring.prepare()


def _ask(
    token: EnrolmentToken, ca: bytes, asked: EnrolmentRequest, fingerprint: str, patience: Patience
) -> EnrolmentAnswer:
    desk = Desk(token.url, believing(ca))
    deadline = time.monotonic() + patience.seconds
    while True:
        answer = desk.post("enrol", asked)
        if answer.status_code == httpx2.codes.OK:
            return msgspec.json.decode(answer.content, type=EnrolmentAnswer)
        waiting = msgspec.json.decode(answer.content, type=EnrolmentWaiting)
        if waiting.fingerprint != fingerprint:
            raise RefusedError(
                f"the hub shows the key {waiting.fingerprint}, this box has {fingerprint}: someone stands between them"
            )
        if time.monotonic() >= deadline:
            raise RefusedError(f"{waiting.detail} Join again with the same token once that is done")
        patience.told(waiting.detail, fingerprint)
        patience.sleep(min(max(waiting.retry_s, 0.1), 60.0))


def _check(answer: EnrolmentAnswer, key: ec.EllipticCurvePrivateKey, ca: bytes, now: datetime) -> None:
    certificate = parse(answer.certificate.encode(), "the hub's answer")
    described = describe(answer.certificate.encode())
    if certificate.public_key() != key.public_key():
        raise ValueError("the certificate is not for this box's key")
    if described.common_name != answer.device:
        raise ValueError(f"the certificate names {described.common_name!r}, the answer {answer.device!r}")
    vouching = {fingerprint(one) for one in parse_all(answer.ca.encode(), "the hub's answer")}
    if describe(ca).fingerprint not in vouching:
        raise ValueError("the answer carries another authority than the one the token names")
    if not described.not_before <= now < described.not_after:
        raise ValueError(
            f"the certificate is valid from {described.not_before:%Y-%m-%d %H:%M} to {described.not_after:%Y-%m-%d} "
            f"UTC, this box's clock says {now:%Y-%m-%d %H:%M}; set the clock and join again with the same token"
        )


def _store(state: Path, token: EnrolmentToken, answer: EnrolmentAnswer, *, again: bool) -> Identity:
    roots = {"director": answer.director_root, "targets": answer.targets_root}
    trust = parse_all(answer.ca.encode())
    if again:
        _change_over(state, answer)
    install(trust_folder(state), roots, datetime.fromisoformat(answer.hub_time).astimezone(UTC))
    if not again:
        keys = keys_folder(state)
        write_durably(keys / "ca.crt", answer.ca.encode(), 0o600)
        write_durably(keys / "device.crt", answer.certificate.encode(), 0o600)
    identity = Identity(
        device=answer.device,
        fleet=answer.fleet,
        site=answer.site,
        hub_url=token.url,
        broker_host=answer.broker_host,
        broker_port=answer.broker_port,
    )
    save_identity(state, identity)
    if again and len(trust) == 1:
        (keys_folder(state) / "wanted.crt").unlink(missing_ok=True)
    return identity


def _change_over(state: Path, answer: EnrolmentAnswer) -> None:
    """Put the new pair to use and forget what was verified for the former device: its versions count from 1."""
    keyring = Keyring(keys_folder(state))
    if (keyring.next / "device.key").exists():
        keyring.complete(answer.certificate, parse_all(answer.ca.encode()))
        keyring.promote()
    for path in trust_folder(state).glob("*"):
        if path.name == _FLOOR:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
