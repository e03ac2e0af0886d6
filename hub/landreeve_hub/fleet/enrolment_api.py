"""What a box speaks over HTTPS; served with the certificate of the hub's authority.

``GET  /enrol/v1/ca``         the authority's certificate: public, and worth nothing without the token's fingerprint
``GET  /enrol/v1/crl``        the revocation lists, for a broker that runs elsewhere
``POST /enrol/v1/enrol``      ``{secret, csr}`` → `EnrolmentAnswer`; 202 `EnrolmentWaiting` while a person decides
``POST /enrol/v1/reenrol``    ``{csr}`` over mTLS with the present certificate → `RenewalAnswer`
``POST /enrol/v1/challenge``  → `Challenge`; ``POST /enrol/v1/recover`` `RecoveryRequest` → `RenewalAnswer`

Whatever is refused is a problem (RFC 9457) with a ``reason``.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from landreeve.trust.enrolment import (
    Challenge,
    EnrolmentAnswer,
    EnrolmentRequest,
    EnrolmentWaiting,
    RecoveryRequest,
    RenewalAnswer,
    RenewalRequest,
)

from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.enrolment import Asked, Enrolled, Reason, Refused, Rules, Waiting, redeem
from landreeve_hub.fleet.register import Record
from landreeve_hub.fleet.renewal import Challenges, NotRenewed, Renewed, Why, recover, renew
from landreeve_hub.process import PEER
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

MAX_BODY_BYTES = 32 * 1024
_STATUS = {Reason.BAD_REQUEST: 422, Reason.SITE_TAKEN: 409, Reason.KEY_IN_USE: 409, Reason.CLAIMED: 409}
_NOT_RENEWED = {Why.BAD_REQUEST: 422, Why.NO_CERTIFICATE: 401}
_LOG = logging.getLogger(__name__)
T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What a new device is told about the fleet."""

    fleet: str
    broker_host: str
    broker_port: int
    director_root: str
    targets_root: str


@dataclass(frozen=True)
class Desk:
    """What the routes stand on. ``facts`` is asked at each enrolment (ports and roots change); ``record`` enters
    what is given out into the audit log; ``enrolled`` is
    awaited before the answer, so the broker knows the device when it calls; it also runs for a repeat. ``waiting``
    and ``renewed`` are told so that people see it."""

    store: Store
    authority: Authority
    facts: Callable[[], FleetFacts]
    enrolled: Callable[[Enrolled], Awaitable[None]]
    clock: Callable[[], datetime]
    record: Record
    rules: Rules = field(default_factory=Rules)
    waiting: Callable[[Waiting], None] = lambda _: None
    renewed: Callable[[Renewed], None] = lambda _: None


def router(desk: Desk) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/enrol/v1")
    _public(routes, desk)
    _enrolment(routes, desk)
    _renewal(routes, desk)
    return routes


def _public(routes: APIRouter, desk: Desk) -> None:
    @routes.get("/ca")
    async def authority_certificate() -> Response:
        return Response(desk.authority.ca_pem, media_type="application/pem-certificate-chain")

    @routes.get("/crl")
    async def revocation_lists() -> Response:
        return Response(desk.authority.crl_path.read_bytes(), media_type="application/x-pem-file")


def _enrolment(routes: APIRouter, desk: Desk) -> None:
    @routes.post("/enrol")
    async def enrol(request: Request) -> Response:
        asked = await _asked(request, EnrolmentRequest)
        if isinstance(asked, Response):
            return asked
        now, known = desk.clock(), desk.facts()
        address = request.client.host if request.client else ""
        claim = Asked(asked.secret, asked.csr, asked.generation, address)
        answer = await redeem(
            desk.store, desk.authority, claim, now, fleet=known.fleet, record=desk.record, rules=desk.rules
        )
        match answer:
            case Refused(reason, sentence):
                _LOG.warning("enrolment refused (%s): %s", reason, sentence)
                return _problem(_STATUS.get(reason, 403), reason, sentence)
            case Waiting():
                desk.waiting(answer)
                return _json(202, EnrolmentWaiting(detail=answer.sentence, fingerprint=answer.fingerprint))
            case Enrolled():
                await desk.enrolled(answer)
                return _json(200, _answer(answer, known, desk.authority, now))


def _renewal(routes: APIRouter, desk: Desk) -> None:
    challenges = Challenges()

    @routes.post("/reenrol")
    async def reenrol(request: Request) -> Response:
        asked = await _asked(request, RenewalRequest)
        if isinstance(asked, Response):
            return asked
        peer = getattr(request.state, PEER, None)
        return _renewed(
            desk, await renew(desk.store, desk.authority, peer, asked.csr, desk.clock(), desk.rules, desk.record)
        )

    @routes.post("/challenge")
    async def challenge() -> Response:
        return _json(200, Challenge(challenge=challenges.make(desk.clock())))

    @routes.post("/recover")
    async def recovery(request: Request) -> Response:
        asked = await _asked(request, RecoveryRequest)
        if isinstance(asked, Response):
            return asked
        answer = await recover(desk.store, desk.authority, challenges, asked, desk.clock(), desk.rules, desk.record)
        return _renewed(desk, answer)


def _renewed(desk: Desk, answer: Renewed | NotRenewed) -> Response:
    if isinstance(answer, NotRenewed):
        _LOG.warning("renewal refused (%s): %s", answer.why, answer.sentence)
        return _problem(_NOT_RENEWED.get(answer.why, 403), answer.why, answer.sentence)
    desk.renewed(answer)
    _LOG.info("%s has a new certificate%s", answer.device, ", after its own had expired" if answer.recovered else "")
    time = rfc3339(desk.clock())
    return _json(200, RenewalAnswer(certificate=answer.certificate, ca=desk.authority.trusted_pem, hub_time=time))


async def _asked(request: Request, kind: type[T]) -> T | Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return _problem(413, "too_large", f"The request is larger than {MAX_BODY_BYTES} bytes.")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _problem(422, Reason.BAD_REQUEST, f"The request cannot be read: {error}.")
    except RecursionError:
        return _problem(422, Reason.BAD_REQUEST, "The request cannot be read: it is nested too deeply.")


def _answer(answer: Enrolled, facts: FleetFacts, authority: Authority, now: datetime) -> EnrolmentAnswer:
    return EnrolmentAnswer(
        device=answer.device,
        site=answer.site,
        fleet=facts.fleet,
        certificate=answer.certificate,
        ca=authority.trusted_pem,
        broker_host=facts.broker_host,
        broker_port=facts.broker_port,
        director_root=facts.director_root,
        targets_root=facts.targets_root,
        hub_time=rfc3339(now),
    )


def _problem(status: int, reason: str, sentence: str) -> Response:
    body = {"type": "about:blank", "title": "refused", "status": status, "reason": reason, "detail": sentence}
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json")


def _json(status: int, body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
