"""The two routes a box speaks before it has a certificate; served over HTTPS with the hub authority's certificate.

``GET /enrol/v1/ca``      the authority's certificate: public, and worth nothing without the token's fingerprint
``POST /enrol/v1/enrol``  ``{secret, csr}`` → `EnrolmentAnswer`, or a problem (RFC 9457) with a ``reason``
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import msgspec
from fastapi import APIRouter, Request, Response
from landreeve.trust.enrolment import EnrolmentAnswer, EnrolmentRequest

from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.enrolment import Enrolled, Reason, Refused, redeem
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import rfc3339

MAX_BODY_BYTES = 32 * 1024
_STATUS = {Reason.BAD_REQUEST: 422, Reason.SITE_TAKEN: 409, Reason.KEY_IN_USE: 409}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FleetFacts:
    """What a new device is told about the fleet."""

    fleet: str
    broker_host: str
    broker_port: int
    director_root: str
    targets_root: str


def enrolment_router(
    store: Store,
    authority: Authority,
    facts: Callable[[], FleetFacts],
    enrolled: Callable[[Enrolled], Awaitable[None]],
    clock: Callable[[], datetime],
) -> APIRouter:
    """The routes. ``facts`` is asked at each enrolment (ports and roots change); ``enrolled`` is awaited before
    the answer, so the broker knows the device when it calls; it also runs for a repeat."""
    router = APIRouter(prefix="/enrol/v1")

    @router.get("/ca")
    async def authority_certificate() -> Response:
        return Response(authority.ca_pem, media_type="application/pem-certificate-chain")

    @router.post("/enrol")
    async def enrol(request: Request) -> Response:
        asked = await _asked(request)
        if isinstance(asked, Response):
            return asked
        now = clock()
        known = facts()
        answer = await redeem(store, authority, asked.secret, asked.csr, now, fleet=known.fleet)
        if isinstance(answer, Refused):
            _LOG.warning("enrolment refused (%s): %s", answer.reason, answer.sentence)
            return _problem(_STATUS.get(answer.reason, 403), answer.reason, answer.sentence)
        await enrolled(answer)
        return _json(200, _answer(answer, known, authority, now))

    return router


async def _asked(request: Request) -> EnrolmentRequest | Response:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return _problem(413, "too_large", f"The request is larger than {MAX_BODY_BYTES} bytes.")
    try:
        return msgspec.json.decode(body, type=EnrolmentRequest)
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
        ca=authority.ca_pem,
        broker_host=facts.broker_host,
        broker_port=facts.broker_port,
        director_root=facts.director_root,
        targets_root=facts.targets_root,
        hub_time=rfc3339(now),
    )


def _problem(status: int, reason: str, sentence: str) -> Response:
    body = {"type": "about:blank", "title": "not enrolled", "status": status, "reason": reason, "detail": sentence}
    return Response(msgspec.json.encode(body), status, media_type="application/problem+json")


def _json(status: int, body: EnrolmentAnswer) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
