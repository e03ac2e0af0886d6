"""How a box becomes a device: a single-use token, a request for its own key, perhaps a person, a certificate.

Only the token's hash is stored. The token is spent in the transaction that creates the device, so of two boxes
with one token exactly one gets in. The device's id is derived from its key: a box whose answer was lost on the
way asks again with the same key and token and gets the same identity, while anyone else is refused.

A site whose box was re-imaged gets a new *incarnation*: a new device in the old one's place. That takes a token
minted for it, or a person who approves it (`landreeve_hub.fleet.waiting`).
"""

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from landreeve.trust.keyprint import keyprint
from landreeve.trust.token import EnrolmentToken, format_token
from landreeve.wire.ids import check_id
from sqlalchemy import Connection, Row, select, update
from sqlalchemy.exc import IntegrityError

from landreeve_hub.fleet import incarnation, register, waiting
from landreeve_hub.fleet.authority import DEVICE_DAYS, Authority, BadRequestError, public_bytes, request_key
from landreeve_hub.fleet.register import Issued
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.tables import desired, devices, enrolment_tokens

TOKEN_LIFETIME = timedelta(hours=24)
MAX_TOKEN_LIFETIME = timedelta(days=7)
MAX_GENERATION = 2**53
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
    WITHDRAWN = "withdrawn_token"
    CLAIMED = "claimed_token"
    DENIED = "denied"
    BAD_REQUEST = "bad_request"
    KEY_IN_USE = "key_in_use"
    SITE_TAKEN = "site_taken"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator has set: whether a person must approve every box, how many days a certificate is good, and
    for how many days after that a device may still recover by itself."""

    approval: bool = False
    certificate_days: float = DEVICE_DAYS
    recover_days: float = 180.0


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device and its certificate (PEM). ``again`` when this repeats an answer that was lost; ``replaced`` is the
    former device of the site, whose identity is over."""

    device: str
    site: str
    certificate: str
    expires: datetime
    again: bool
    replaced: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person has to look at the key first; the box asks again."""

    device: str
    site: str
    fingerprint: str
    sentence: str


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
    replaces: bool = False,
) -> str:
    """The text of a token for one box at that site; `BadSiteError` when there cannot be one.

    ``url`` is the hub's HTTPS address as the box reaches it. The text is shown once and kept nowhere. ``replaces``
    lets the box take the place of the site's present one.
    """
    _check(site, labels, ttl)
    secret = secrets.token_urlsafe(_SECRET_BYTES)

    def keep(connection: Connection) -> None:
        taken = connection.execute(select(devices.c.id).where(devices.c.site == site)).first() is not None
        if taken and not replaces:
            raise BadSiteError(
                f"site {site!r} has a device already; for a new box in its place mint a token that replaces it "
                "(device token --replace), or use another name"
            )
        row = {"hash": hash_of(secret), "site": site, "labels": dict(labels), "expires": rfc3339(now + ttl)}
        connection.execute(enrolment_tokens.insert().values({**row, "replaces": replaces}))

    await store.write(keep)
    return format_token(EnrolmentToken(url=url, ca=ca_fingerprint, secret=secret, site=site))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a box asked for. ``generation`` is the highest generation of a document it has believed, ``address``
    where it asked from."""

    secret: str
    csr: str
    generation: int = 0
    address: str = ""


async def redeem(
    store: Store,
    authority: Authority,
    asked: Asked,
    now: datetime,
    *,
    fleet: str,
    record: register.Record,
    rules: Rules = Rules(),
) -> Enrolled | Waiting | Refused:
    """Make the device the token was minted for, or say why not, or that a person must decide first."""
    try:
        key = request_key(asked.csr)
        device = device_id(asked.csr)
        issued = register.issue(authority, asked.csr, device, now, rules.certificate_days)
    except BadRequestError as error:
        return Refused(Reason.BAD_REQUEST, f"The certificate request is refused: {error}.")
    claim = _Claim(asked, issued, keyprint(key), fleet, rules.approval, now, record)
    try:
        return await store.write(lambda connection: _spend(connection, claim))
    except IntegrityError:
        return Refused(Reason.SITE_TAKEN, "The site has a device already; remove it at the hub or use another name.")


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
class _Claim:
    """What a box asked for, checked as far as it can be without the store."""

    asked: Asked
    issued: Issued
    fingerprint: str
    fleet: str
    approval: bool
    now: datetime
    record: register.Record
    device: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", self.issued.device)


def _spend(connection: Connection, claim: _Claim) -> Enrolled | Waiting | Refused:
    """Judge the claim, and when nothing stands against it, make the device."""
    query = select(enrolment_tokens).where(enrolment_tokens.c.hash == hash_of(claim.asked.secret))
    token = connection.execute(query).one_or_none()
    if token is None:
        return Refused(Reason.UNKNOWN, "The hub does not know this token; mint one and copy the whole line.")
    if token.withdrawn:
        return Refused(Reason.WITHDRAWN, f"The token was withdrawn at {token.withdrawn}; mint a new one.")
    decision = waiting.decision_of(connection, claim.device, token.hash)
    if decision != waiting.APPROVED and claim.now >= parse_rfc3339(token.expires):
        return Refused(Reason.EXPIRED, f"The token expired at {token.expires}; mint a new one.")
    known = connection.execute(select(devices.c.revoked).where(devices.c.id == claim.device)).one_or_none()
    if token.used_at:
        return _repeat(connection, token, known, claim)
    if known is not None:
        return Refused(Reason.KEY_IN_USE, "A device with this key is enrolled already; make a new key.")
    holder = incarnation.holder_of(connection, token.site)
    if claim.approval or (holder is not None and not token.replaces):
        undecided = _ask_a_person(connection, token, holder, decision, claim)
        if undecided is not None:
            return undecided
    return _create(connection, token, holder, claim)


def _ask_a_person(
    connection: Connection, token: AnyRow, holder: AnyRow | None, decision: str, claim: _Claim
) -> Waiting | Refused | None:
    """None once a person has approved this very key."""
    if decision == waiting.APPROVED:
        return None
    if decision == waiting.DENIED:
        return Refused(Reason.DENIED, "A person at the hub has refused this box; mint a new token to try again.")
    claimed = waiting.claimed_by(connection, token.hash)
    if claimed not in {None, claim.device}:
        return Refused(
            Reason.CLAIMED,
            "Another box has asked with this token and waits for approval; if that is not yours, deny it at the hub "
            "and mint a new token.",
        )
    request = waiting.Request(
        claim.device, token.hash, token.site, claim.fingerprint, claim.asked.address, holder.id if holder else ""
    )
    waiting.note_in(connection, request, claim.now)
    why = f"it would replace {holder.id} at {token.site}" if holder else "this fleet approves every box"
    sentence = (
        f"A person must approve this box first ({why}). Its key is {claim.fingerprint}: compare it with what the hub "
        "shows (console, or landreeve-hub device waiting)."
    )
    return Waiting(claim.device, token.site, claim.fingerprint, sentence)


def _repeat(connection: Connection, token: AnyRow, known: AnyRow | None, claim: _Claim) -> Enrolled | Refused:
    """The same box again: only its new certificate is noted. Not for a device revoked in the meantime."""
    if token.device != claim.device or known is None or known.revoked:
        return Refused(Reason.USED, f"The token was used at {token.used_at} and enrols one box only; mint a new one.")
    register.keep_in(connection, claim.issued, claim.now, claim.record, "device.enrol-again", site=token.site)
    return Enrolled(claim.device, token.site, claim.issued.pem, claim.issued.expires, again=True)


def _create(connection: Connection, token: AnyRow, holder: AnyRow | None, claim: _Claim) -> Enrolled:
    row = {
        "id": claim.device,
        "fleet": claim.fleet,
        "site": token.site,
        "state": "enrolled",
        "labels": token.labels,
        "enrolled": rfc3339(claim.now),
    }
    if holder is not None:
        row |= incarnation.succeed_in(connection, holder, claim.device, claim.now)
        row["labels"] = {**holder.labels, **token.labels}
    connection.execute(devices.insert().values(row))
    _begin_above(connection, claim.device, min(max(claim.asked.generation, 0), MAX_GENERATION))
    replaced = holder.id if holder is not None else ""
    told = {"site": str(token.site), **({"replaces": replaced} if replaced else {})}
    register.keep_in(connection, claim.issued, claim.now, claim.record, "device.enrol", **told)
    if holder is not None:
        incarnation.hand_over_in(connection, holder.id, claim.device)
    spent = {"used_at": rfc3339(claim.now), "device": claim.device}
    connection.execute(update(enrolment_tokens).where(enrolment_tokens.c.hash == token.hash).values(spent))
    waiting.forget_in(connection, claim.device)
    return Enrolled(claim.device, token.site, claim.issued.pem, claim.issued.expires, again=False, replaced=replaced)


def _begin_above(connection: Connection, device: str, generation: int) -> None:
    """A box that was a device before has believed documents: its next one must be newer than all of them. A number
    without a document, as after a conflict (`landreeve_hub.rollout.conflicts`), says so."""
    if generation:
        stand_in = {"document": b"", "content_hash": "", "signed_at": "", "generation": generation}
        connection.execute(desired.insert().values(device=device, **stand_in))
