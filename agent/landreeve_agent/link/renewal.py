"""Keeping the certificate good, in two phases: the new pair is proven before the old one is dropped.

Made beside the old (`landreeve_agent.link.keyring`), asked for over HTTPS, proven by a real connection to the broker,
promoted by one rename. Wherever it is interrupted the next look goes on from there. Asking never needs the broker:
a box whose certificate has expired gets a new one with a signature of its old key.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from landreeve.trust.certs import BadCertificateError, Described, describe, parse, parse_all
from landreeve.trust.enrolment import (
    Challenge,
    RecoveryRequest,
    RenewalAnswer,
    RenewalRequest,
    recovery_bytes,
)
from landreeve.wire.messages import Event

from landreeve_agent.link.carrier import CarrierError
from landreeve_agent.link.desk import Desk, RefusedError, believing, request_for, sentence
from landreeve_agent.link.keyring import TRUST, Keyring, KeyringError, merged

logger = logging.getLogger(__name__)

PROOF_S = 60.0
LONGEST_PAUSE_S = 3600.0
_EXPECTED = (OSError, ValueError, httpx2.HTTPError, RefusedError, CarrierError, msgspec.DecodeError)


def due_at(certificate: Described) -> datetime:
    """When to renew: when a third of the lifetime is left, later by up to a fifteenth of it. The serial number, which
    is random, decides by how much, so that boxes enrolled in one morning do not all come back in one."""
    lifetime = certificate.not_after - certificate.not_before
    share = int(certificate.serial, 16) % 1000 / 1000
    return certificate.not_after - lifetime / 3 + lifetime * (share / 15)


def roll_due_at(since: float, serial: str, jitter_s: float) -> float:
    """When to renew because the hub's authority is new, in unix seconds: within ``jitter_s`` of being told."""
    return since + int(serial, 16) % 1000 / 1000 * jitter_s


@dataclass
class Renewer:
    """One box's renewals. ``prove`` connects to the broker with the pair in a folder and raises `CarrierError` when
    it is not accepted; ``tell`` reports an event; ``problem`` is what stands in the way now, in words."""

    keyring: Keyring
    hub_url: str
    site: str
    prove: Callable[[Path], Awaitable[None]]
    tell: Callable[[Event], None]
    clock: Callable[[], datetime]
    every_s: float = 600.0
    jitter_s: float = 3600.0
    problem: str = ""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Look now and then, and when woken."""
        failures = 0
        while True:
            self._wake.clear()
            try:
                await self.step()
                failures, self.problem = 0, ""
            except _EXPECTED as error:
                failures += 1
                self._note(sentence(error))
            pause = min(self.every_s * 2 ** min(failures, 10), max(self.every_s, LONGEST_PAUSE_S))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.7, 1.0)):  # noqa: S311 - only spreads load
                    await self._wake.wait()

    def trust(self, authorities: tuple[str, ...]) -> None:
        """The hub's document names whom to trust; nothing happens when that is known, or nobody is named."""
        try:
            if authorities and self.keyring.want(authorities):
                logger.info("the hub names %d authorities to trust", len(authorities))
                self._wake.set()
        except BadCertificateError as error:
            self._note(f"the hub's document: {error}")

    async def step(self) -> bool:
        """Do what is due; whether a new pair, or a new trust, is in use now."""
        now = self.clock()
        certificate = self.keyring.described()
        if self._is_due(certificate, now):
            await self._renew(certificate, now)
            return True
        if self.keyring.is_surplus():
            return await self._drop_former()
        return False

    def _is_due(self, certificate: Described, now: datetime) -> bool:
        if now >= due_at(certificate):
            return True
        wanted = self.keyring.wanted()
        if not wanted or self.keyring.is_of(wanted[-1]):
            return False
        return now.timestamp() >= roll_due_at(self.keyring.wanted_since(), certificate.serial, self.jitter_s)

    async def _renew(self, certificate: Described, now: datetime) -> None:
        expired = now >= certificate.not_after
        if not self._goes_on(now):
            key = await asyncio.to_thread(self.keyring.prepare)
            answer = await asyncio.to_thread(self._ask, key, expired)
            self._keep(answer, key, certificate, now)
        try:
            async with asyncio.timeout(PROOF_S):
                await self.prove(self.keyring.next)
        except (CarrierError, TimeoutError) as error:
            if not expired:  # the old one is good for nothing more: then the new one has nothing to prove
                raise CarrierError(f"the new certificate is not proven yet: {error or 'no answer in time'}") from error
        await asyncio.to_thread(self.keyring.promote)
        self._said(certificate, recovered=expired)

    def _goes_on(self, now: datetime) -> bool:
        """Whether an earlier attempt got as far as a certificate that is worth proving."""
        if not self.keyring.is_ready(now):
            return False
        ready = describe((self.keyring.next / "device.crt").read_bytes())
        return now < due_at(ready) and ready.serial != self.keyring.described().serial

    def _ask(self, key: ec.EllipticCurvePrivateKey, expired: bool) -> RenewalAnswer:
        csr = request_for(key, self.site)
        ca = (self.keyring.folder / TRUST).read_bytes()
        if not expired:
            desk = Desk(self.hub_url, believing(ca, self.keyring.folder))
            return desk.ask("reenrol", RenewalRequest(csr=csr), RenewalAnswer)
        desk = Desk(self.hub_url, believing(ca))
        challenge = desk.ask("challenge", None, Challenge).challenge
        signature = self.keyring.key().sign(recovery_bytes(challenge, csr), ec.ECDSA(hashes.SHA256()))
        pem = self.keyring.certificate.decode()
        asked = RecoveryRequest(certificate=pem, csr=csr, challenge=challenge, signature=signature.hex())
        return desk.ask("recover", asked, RenewalAnswer)

    def _keep(self, answer: RenewalAnswer, key: ec.EllipticCurvePrivateKey, former: Described, now: datetime) -> None:
        """Check the answer and put it into the next pair. `ValueError` says what is wrong with it."""
        certificate = parse(answer.certificate.encode(), "the hub's answer")
        described = describe(answer.certificate.encode())
        if certificate.public_key() != key.public_key():
            raise KeyringError("the hub's answer: the certificate is not for this box's new key")
        if described.common_name != former.common_name:
            raise KeyringError(f"the hub's answer names {described.common_name!r}, this box is {former.common_name!r}")
        if not described.not_before <= now < described.not_after:
            raise KeyringError(
                f"the hub's answer is valid from {described.not_before:%Y-%m-%d %H:%M} to "
                f"{described.not_after:%Y-%m-%d} UTC, this box's clock says {now:%Y-%m-%d %H:%M}; set the clock"
            )
        authorities = parse_all(answer.ca.encode(), "the hub's answer")
        self.keyring.complete(answer.certificate, merged(self.keyring.trusted(), authorities))

    async def _drop_former(self) -> bool:
        """The hub no longer names someone this box trusts: drop that one, once the broker is reached without it."""
        if not self.keyring.is_of(self.keyring.wanted()[-1]):
            return False
        self.keyring.copy(self.keyring.wanted())
        try:
            async with asyncio.timeout(PROOF_S):
                await self.prove(self.keyring.next)
        except (CarrierError, TimeoutError):
            self.keyring.discard()  # the broker still shows a certificate of the former one: later, then
            return False
        await asyncio.to_thread(self.keyring.promote)
        logger.info("the former authority is trusted no longer")
        return True

    def _said(self, former: Described, *, recovered: bool) -> None:
        now = self.keyring.described()
        days = (now.not_after - now.not_before) / timedelta(days=1)
        why = ", after the former one had expired" if recovered else ""
        text = f"This box has a new certificate, good for {days:.0f} days{why}."
        data = {"serial": now.serial, "former": former.serial, "expires": now.not_after.isoformat()}
        self.tell(Event(name="certificate.renewed", subject=self.site, cause="renewed", sentence=text, data=data))
        logger.info("%s", text)

    def _note(self, problem: str) -> None:
        if problem != self.problem:
            logger.warning("the certificate is not renewed: %s", problem)
        self.problem = problem
