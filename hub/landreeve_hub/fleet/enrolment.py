"""How a box becomes a device: a single-use token, a request for its own key, a certificate.

Only the token's hash is stored. The token is spent in the transaction that creates the device, so of two boxes
with one token exactly one gets in. The device's id is derived from its key: a box whose answer was lost on the
way asks again with the same key and token and gets the same identity, while anyone else is refused.
"""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from landreeve.trust.certs import Described, describe
from landreeve.trust.token import EnrolmentToken, format_token
from landreeve.wire.ids import check_id
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.exc import IntegrityError

from landreeve_hub.fleet.authority import Authority, BadRequestError, public_bytes, request_key
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.tables import devices, enrolment_tokens

TOKEN_LIFETIME = timedelta(hours=24)
MAX_TOKEN_LIFETIME = timedelta(days=7)
_SECRET_BYTES = 16
MAX_LABELS = 32
MAX_LABEL_CHARACTERS = 128
AnyRow = Row[Any]


class BadSiteError(ValueError):
    """A site or labels for which no token can be minted; the text says why and what to do."""


class Reason(StrEnum):
    """Why a box is not enrolled."""

    UNKNOWN = "unknown_token"
    EXPIRED = "expired_token"
    USED = "used_token"
    BAD_REQUEST = "bad_request"
    KEY_IN_USE = "key_in_use"
    SITE_TAKEN = "site_taken"


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device and its certificate (PEM). ``again`` when this repeats an answer that was lost."""

    device: str
    site: str
    certificate: str
    expires: datetime
    again: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """No device was made and the token is as it was."""

    reason: Reason
    sentence: str


async def mint(
    store: Store,
    site: str,
    labels: Mapping[str, str],
    ttl: timedelta,
    now: datetime,
    *,
    url: str,
    ca_fingerprint: str,
) -> str:
    """The text of a token for one box at that site; `BadSiteError` when there cannot be one.

    ``url`` is the hub's HTTPS address as the box reaches it. The text is shown once and kept nowhere.
    """
    _check(site, labels, ttl)
    secret = secrets.token_urlsafe(_SECRET_BYTES)

    def keep(connection: Connection) -> None:
        if connection.execute(select(devices.c.id).where(devices.c.site == site)).first() is not None:
            raise BadSiteError(f"site {site!r} has a device already; revoke and remove it first, or use another name")
        row = {"hash": hash_of(secret), "site": site, "labels": dict(labels), "expires": rfc3339(now + ttl)}
        connection.execute(enrolment_tokens.insert().values(row))

    await store.write(keep)
    return format_token(EnrolmentToken(url=url, ca=ca_fingerprint, secret=secret, site=site))


async def redeem(
    store: Store, authority: Authority, secret: str, csr: str, now: datetime, *, fleet: str
) -> Enrolled | Refused:
    """Make the device the token was minted for, or say why not."""
    try:
        device = device_id(csr)
        certificate = authority.sign_device(csr, device, now)
    except BadRequestError as error:
        return Refused(Reason.BAD_REQUEST, f"The certificate request is refused: {error}.")
    asked = _Asked(secret, device, fleet, describe(certificate.encode()), now)
    try:
        answer = await store.write(lambda connection: _spend(connection, asked))
    except IntegrityError:
        return Refused(Reason.SITE_TAKEN, "The site has a device already; remove it at the hub or use another name.")
    if isinstance(answer, Refused):
        return answer
    site, again = answer
    return Enrolled(device, site, certificate, asked.certificate.not_after, again)


def device_id(csr: str) -> str:
    """``d-`` and 60 bits of the key's sha256 in base32: an id nobody can ask for who has not the key.

    `BadRequestError` when the request is not acceptable.
    """
    digest = hashlib.sha256(public_bytes(request_key(csr))).digest()
    return "d-" + base64.b32encode(digest).decode().lower()[:12]


def hash_of(secret: str) -> str:
    """How a token's secret is stored: 128 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _check(site: str, labels: Mapping[str, str], ttl: timedelta) -> None:
    try:
        check_id(site)
    except ValueError as error:
        raise BadSiteError(f"site: {error}") from error
    if len(labels) > MAX_LABELS or any(max(len(k), len(v)) > MAX_LABEL_CHARACTERS for k, v in labels.items()):
        raise BadSiteError(f"labels: at most {MAX_LABELS} of at most {MAX_LABEL_CHARACTERS} characters")
    if not timedelta(0) < ttl <= MAX_TOKEN_LIFETIME:
        raise BadSiteError(f"ttl: {ttl} is not between 0 and {MAX_TOKEN_LIFETIME.days} days")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a box asked for, checked as far as it can be without the store."""

    secret: str
    device: str
    fleet: str
    certificate: Described
    now: datetime


def _spend(connection: Connection, asked: _Asked) -> tuple[str, bool] | Refused:
    """The site, and whether this repeats a lost answer."""
    query = select(enrolment_tokens).where(enrolment_tokens.c.hash == hash_of(asked.secret))
    token = connection.execute(query).one_or_none()
    if token is None:
        return Refused(Reason.UNKNOWN, "The hub does not know this token; mint one and copy the whole line.")
    if asked.now >= parse_rfc3339(token.expires):
        return Refused(Reason.EXPIRED, f"The token expired at {token.expires}; mint a new one.")
    known = connection.execute(select(devices.c.revoked).where(devices.c.id == asked.device)).one_or_none()
    if token.used_at:
        return _repeat(connection, token, known, asked)
    if known is not None:
        return Refused(Reason.KEY_IN_USE, "A device with this key is enrolled already; make a new key.")
    connection.execute(devices.insert().values(_device(token, asked)))
    spent = {"used_at": rfc3339(asked.now), "device": asked.device}
    connection.execute(update(enrolment_tokens).where(enrolment_tokens.c.hash == token.hash).values(spent))
    return token.site, False


def _repeat(connection: Connection, token: AnyRow, known: AnyRow | None, asked: _Asked) -> tuple[str, bool] | Refused:
    """The same box again: only its new certificate is noted. Not for a device revoked in the meantime."""
    if token.device != asked.device or known is None or known.revoked:
        return Refused(Reason.USED, f"The token was used at {token.used_at} and enrols one box only; mint a new one.")
    change = _certificate(asked.certificate)
    connection.execute(update(devices).where(devices.c.id == asked.device).values(change))
    return token.site, True


def _device(token: AnyRow, asked: _Asked) -> dict[str, object]:
    return {
        "id": asked.device,
        "fleet": asked.fleet,
        "site": token.site,
        "state": "enrolled",
        "labels": token.labels,
        "enrolled": rfc3339(asked.now),
        **_certificate(asked.certificate),
    }


def _certificate(certificate: Described) -> dict[str, object]:
    return {"certificate_serial": certificate.serial, "certificate_expires": rfc3339(certificate.not_after)}
