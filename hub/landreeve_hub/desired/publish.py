"""Composes, signs, stores and publishes what each device should run.

The generation is decided in the transaction that stores the document, and the document is published after it
is committed: a crash between the two is made good by `Publisher.republish` when the broker is reached again.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from landreeve.trust.document import document_text, parse_document
from landreeve.wire.codec import decode, encode
from landreeve.wire.messages import Desired, DesiredModel, Probation, SignedDesired
from landreeve.wire.schedule import LineRules, Schedule
from landreeve.wire.strategy import Strategy
from landreeve.wire.topics import Down, DownTopic, format_topic
from sqlalchemy import Connection, RowMapping, select

from landreeve_hub.desired.conflict import conflicted
from landreeve_hub.desired.document import compose, content_hash
from landreeve_hub.desired.lines import line_of
from landreeve_hub.desired.rates import rate_of
from landreeve_hub.errors import NotFoundError
from landreeve_hub.fleet.sessions import is_doubled
from landreeve_hub.learning.known_plans import hints_for
from landreeve_hub.signing.chain import AHEAD, FRESH_LIFETIME
from landreeve_hub.signing.director import Director, timestamp_version
from landreeve_hub.signing.errors import SigningError, UnapprovedReleaseError
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store.database import Store
from landreeve_hub.store.moment import parse_rfc3339, rfc3339
from landreeve_hub.store.tables import assignments, desired, devices, releases
from landreeve_hub.store.upsert import upsert

Publish = Callable[[str, bytes, bool], None]
RESIGN_AFTER: timedelta = FRESH_LIFETIME / 2
_LOG = logging.getLogger(__name__)


class UnknownDeviceError(NotFoundError, LookupError):
    """A document was asked for that no enrolled, unrevoked device would read."""


class ConflictedDeviceError(SigningError):
    """The device obeys a newer document than this hub ever made; a person must say who is right (device resolve)."""


class DoubledDeviceError(ConflictedDeviceError):
    """Two boxes speak under the device's name; nothing is ordered until one is gone."""


@dataclass(frozen=True, slots=True)
class Published:
    """What is in force for a device now. ``changed`` says whether this call made and published it."""

    device: str
    generation: int
    changed: bool


@dataclass(frozen=True, slots=True)
class _Stored:
    generation: int
    document: bytes
    content_hash: str
    signed_at: str
    digest: str = ""


def utc_now() -> datetime:
    """The hub's clock."""
    return datetime.now(UTC)


class Publisher:
    """The only writer of ``dn/<device>/desired``.

    ``publish(topic, payload, retain)`` hands a message to the broker's client; it may drop it while the broker
    is away, since `republish` follows. ``rate`` limits the facts per second of devices without a rate of their own
    (`landreeve_hub.desired.rates`); ``line`` is what the line of every site without rules of its own may
    carry (`landreeve_hub.desired.lines`).
    """

    def __init__(  # noqa: PLR0917  wiring
        self,
        store: Store,
        director: Director,
        targets: TargetsRepository,
        publish: Publish,
        clock: Callable[[], datetime] = utc_now,
        rate: float | None = None,
        authorities: Callable[[], tuple[str, ...]] = tuple,
        line: LineRules | None = None,
    ) -> None:
        self._store = store
        self._director = director
        self._targets = targets
        self._publish = publish
        self._clock = clock
        self._rate = rate
        self._authorities = authorities
        self._line = line
        self._order = asyncio.Lock()  # what is committed last must also be published last

    async def publish_device(self, device: str) -> Published:
        """Bring the device's document up to its assignments.

        A new generation only when the content changed; signed again under the same generation when half of the
        signature's life is over or a key was replaced; otherwise nothing happens. Raises `UnknownDeviceError`,
        and `UnapprovedReleaseError` when an assignment names a release no approver has signed.
        """
        async with self._order:
            now = self._clock()
            topic, stored, changed = await self._store.write(lambda connection: self._renew(connection, device, now))
            if changed:
                self._publish(topic, stored.document, True)
            return Published(device, stored.generation, changed)

    async def republish(self) -> int:
        """Publish every stored document again, as it is: after the broker may have forgotten. How many."""
        async with self._order:
            documents = await self._store.read(_documents)
            for topic, document in documents:
                self._publish(topic, document, True)
            return len(documents)

    async def refresh(self) -> tuple[Published, ...]:
        """Sign anew what is getting old, for every device that has a document: due once a day.

        One device that cannot be signed for keeps none of the others waiting; it is logged.
        """
        names = await self._store.read(_with_document)
        done = []
        for device in names:
            try:
                done.append(await self.publish_device(device))
            except SigningError as error:
                _LOG.error("desired document of %s not renewed: %s", device, error)
        return tuple(done)

    def _renew(self, connection: Connection, device: str, now: datetime) -> tuple[str, _Stored, bool]:
        self._targets.refresh(now)
        stored = _stored(connection, device)
        topic = _topic(connection, device)
        orders = _orders(connection, device)
        authorities = self._authorities()
        rate = rate_of(connection, device, self._rate)
        line = line_of(connection, device, self._line)
        content = content_hash(orders, rate, authorities, line)
        if stored is not None and stored.content_hash == content:
            if not self._is_stale(stored, now):
                return topic, stored, False
            document = parse_document(decode(stored.document, SignedDesired).document)
        else:
            generation = stored.generation + 1 if stored else 1
            document = compose(device, generation, orders, rate, now, authorities, line)
        digest = hashlib.sha256(document_text(document).encode()).hexdigest()
        fresh = _Stored(document.generation, self._sign(document, stored, now), content, rfc3339(now), digest)
        upsert(connection, desired, {"device": device, **_columns(fresh)})
        return topic, fresh, True

    def _is_stale(self, stored: _Stored, now: datetime) -> bool:
        signed_at = parse_rfc3339(stored.signed_at)
        if now - signed_at >= RESIGN_AFTER or signed_at - now > AHEAD:  # by a clock that was ahead
            return True
        signed = decode(stored.document, SignedDesired)
        return not self._director.roots().keys() <= signed.director.keys()

    def _sign(self, document: Desired, stored: _Stored | None, now: datetime) -> bytes:
        lengths = self._approved_lengths(document)
        # After a conflict was resolved there may be a number without a document.
        kept = stored.document if stored else b""
        former = timestamp_version(decode(kept, SignedDesired).director) if kept else 0
        director = self._director.sign(document.device, document, lengths, now, former + 1)
        return encode(
            SignedDesired(
                generation=document.generation,
                document=document_text(document),
                director=director,
                targets=self._targets.metadata({model.release: model.model for model in document.models}),
            )
        )

    def _approved_lengths(self, document: Desired) -> Mapping[str, int]:
        approved = self._targets.releases()
        for model in document.models:
            signed = approved.get(model.release)
            if signed is not None and signed != model.manifest_bytes:
                raise UnapprovedReleaseError(
                    f"release {model.release[:12]} ({model.model} {model.version}) was approved with {signed} bytes "
                    f"of manifest, the registry has {model.manifest_bytes}; approve it again"
                )
        return approved


def _topic(connection: Connection, device: str) -> str:
    """Where the device listens. A hub restored from an older backup must not drag it back: what it would make now is
    older than what the device obeys."""
    row = connection.execute(
        select(devices.c.fleet, devices.c.revoked, devices.c.runs).where(devices.c.id == device)
    ).one_or_none()
    if row is None or row.revoked:
        what = "revoked" if row else "unknown"
        raise UnknownDeviceError(f"device {device} is {what}; nothing can be ordered for it")
    if is_doubled(row.runs):
        raise DoubledDeviceError(f"two boxes speak under the name of {device}; nothing is ordered until one is gone")
    if conflict := next(iter(conflicted(connection, [device])), None):
        raise ConflictedDeviceError(
            f"device {device} obeys document {conflict.generation}, which this hub did not make (its newest is "
            f"{conflict.newest}): say who is right (device resolve --adopt or --override)"
        )
    return format_topic(DownTopic(row.fleet, device, Down.DESIRED))


def _orders(connection: Connection, device: str) -> tuple[DesiredModel, ...]:
    joined = assignments.outerjoin(releases, releases.c.digest == assignments.c.digest)
    columns = (assignments, releases.c.manifest_bytes, releases.c.config, releases.c.version.label("release_version"))
    rows = connection.execute(select(*columns).select_from(joined).where(assignments.c.device == device)).mappings()
    orders = tuple(_order(row) for row in rows)
    return tuple(msgspec.structs.replace(order, hints=hints_for(connection, device, order.release)) for order in orders)


def _order(row: RowMapping) -> DesiredModel:
    if row["manifest_bytes"] is None:
        raise UnapprovedReleaseError(
            f"release {row['digest'][:12]} of {row['model']} is assigned to {row['device']} but is not registered"
        )
    return DesiredModel(
        model=row["model"],
        release=row["digest"],
        version=row["version"] or row["release_version"],
        manifest_bytes=row["manifest_bytes"],
        rollout=row["rollout"],
        action=row["action"] or "install",
        probation=msgspec.convert(row["probation"] or {}, Probation),
        schedule=msgspec.convert(row["schedule"], Schedule) if row["schedule"] else None,
        strategy=msgspec.convert(row["strategy"], Strategy) if row["strategy"] else None,
        component=_component(row["config"] or {}),
        after=tuple(row["follows"].split()) or None,
    )


def _component(config: Mapping[str, Any]) -> str | None:
    """The kind of thing a release is, where it is no model: what is not said makes no new generation."""
    kind = str(config.get("component", "model"))
    return None if kind == "model" else kind


def _stored(connection: Connection, device: str) -> _Stored | None:
    row = connection.execute(select(desired).where(desired.c.device == device)).one_or_none()
    return _Stored(row.generation, bytes(row.document), row.content_hash, row.signed_at) if row else None


def _columns(stored: _Stored) -> dict[str, object]:
    return {
        "generation": stored.generation,
        "document": stored.document,
        "content_hash": stored.content_hash,
        "signed_at": stored.signed_at,
        "digest": stored.digest,
    }


def _documents(connection: Connection) -> list[tuple[str, bytes]]:
    joined = desired.join(devices, devices.c.id == desired.c.device)
    rows = connection.execute(
        select(devices.c.fleet, desired.c.device, desired.c.document).select_from(joined).where(~devices.c.revoked)
    )
    found = [(format_topic(DownTopic(row.fleet, row.device, Down.DESIRED)), bytes(row.document)) for row in rows]
    return [(topic, document) for topic, document in found if document]


def _with_document(connection: Connection) -> list[str]:
    joined = desired.join(devices, devices.c.id == desired.c.device)
    query = select(desired.c.device).select_from(joined).where(~devices.c.revoked).order_by(desired.c.device)
    return list(connection.execute(query).scalars())
