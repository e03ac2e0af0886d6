"""The self-test of a broker: does it really keep devices apart, and carry what the contract needs?

Configuration proves nothing: mosquitto grants subscriptions that it then does not serve, and a version may ignore an
ACL file. So two probes with certificates of the hub's authority try what a bad device would, and each reading is
judged by what is delivered: a marker that may be heard, sent after what may not, ends the wait.
"""

import queue
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from landreeve.wire.ids import check_id
from landreeve.wire.topics import ROOT, hub_filter

from landreeve_hub.broker.advice import Finding, finding
from landreeve_hub.broker.plan import HUB_NAME, PROBE_ONE, PROBE_TWO, PROBES
from landreeve_hub.broker.probe import Door, Heard, Papers, Visitor, wait_for
from landreeve_hub.errors import BrokerError
from landreeve_hub.fleet.authority import Authority
from landreeve_hub.fleet.certificates import make_key

LARGE_BYTES = 1_000_000
_DIGEST = "0" * 64


class HubSide(Protocol):
    """The hub's end: a connection of its own, or the running hub's line."""

    heard: "queue.Queue[Heard]"

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool: ...


class Check:
    """One run against one broker. Blocking: some 40 connections, a second or two where all is well."""

    def __init__(self, door: Door, authority: Authority, fleet: str, now: datetime) -> None:
        self._door = door
        self._authority = authority
        self._base = f"{ROOT}/{check_id(fleet)}"
        self._now = now
        self._findings: list[Finding] = []
        self._hub: HubSide
        self._papers: dict[str, Papers] = {}
        self._rogue: Papers

    def run(self, hub: HubSide) -> list[Finding]:
        """Every finding, or only that the broker cannot be reached. ``hub`` hears ``up/#`` of the fleet already.

        `BrokerError` when it was called off (`Door.stopping`).
        """
        self._hub, self._findings = hub, []
        with tempfile.TemporaryDirectory(prefix="landreeve-check-") as folder:
            self._make_papers(Path(folder))
            if self._reach():
                for check in self._checks():
                    if self._door.stopping.is_set():
                        break
                    check()
        if self._door.stopping.is_set():
            raise BrokerError("the check was called off")
        return self._findings

    def _checks(self) -> tuple[Callable[[], None], ...]:
        return (
            self._tls_version,
            self._strangers,
            self._up,
            self._down,
            self._spoofed,
            self._subscriptions,
            self._client_id,
            self._will,
            self._persistent,
            # Last: a broker that does not carry these may hang up on the hub.
            self._retained,
            self._packet_size,
        )

    # What is checked ----------------------------------------------------------------------------------------

    def _reach(self) -> bool:
        for name in PROBES:
            visitor = self._visitor(name)
            refused = visitor.open()
            visitor.close()
            if refused:
                self._note("reach", f"{name} at {self._door.host}:{self._door.port}: {refused}", ok=False)
                return False
        self._note("reach", f"both probes got in over {visitor.tls}", ok=True)
        return True

    def _tls_version(self) -> None:
        refused = self._knock(self._visitor(PROBE_ONE, old_tls=True))
        self._note("tls_version", f"TLS 1.1: {refused}" if refused else "TLS 1.1 was accepted", ok=bool(refused))

    def _strangers(self) -> None:
        nobody = self._knock(Visitor(self._door, None, _name("nobody")))
        self._note("no_certificate", nobody or "it got in", ok=bool(nobody))
        rogue = self._knock(Visitor(self._door, self._rogue, _name("rogue")))
        self._note("rogue_authority", rogue or "it got in", ok=bool(rogue))

    def _up(self) -> None:
        with self._inside(PROBE_ONE) as one:
            said = _words()
            one.publish(self._of(PROBE_ONE, "event"), said)
            came = self._hub_hears(self._of(PROBE_ONE, "event"), said)
        self._note("up", "it came" if came else "it did not come", ok=came)

    def _down(self) -> None:
        missed = []
        with self._inside(PROBE_ONE, *self._own(PROBE_ONE)) as one:
            for topic in (self._to(PROBE_ONE, "command"), self._shared()):
                said = _words()
                self._hub.publish(topic, said)
                if not one.hears(topic, said):
                    missed.append(topic)
        self._note("down", f"did not come: {', '.join(missed)}" if missed else "both came", ok=not missed)

    def _spoofed(self) -> None:
        """Every message that PROBE_TWO may not send, then markers: all that anyone may have heard."""
        lie, end = _words(), _words()
        topics = [self._of(PROBE_ONE, "event"), self._of(PROBE_ONE, "state"), self._shared()]
        topics += [self._to(PROBE_ONE, "desired"), self._to(PROBE_ONE, "ack")]
        with self._inside(PROBE_ONE, *self._own(PROBE_ONE)) as one:
            for topic in topics:
                with self._inside(PROBE_TWO) as liar:  # a new one for each: the broker may hang up over it
                    liar.publish(topic, lie)
            one.publish(self._of(PROBE_ONE, "event"), end)
            self._hub.publish(self._to(PROBE_ONE, "ack"), end)
            heard = wait_for(self._hub.heard, self._of(PROBE_ONE, "event"), end, self._door)[1]
            heard += wait_for(one.heard, self._to(PROBE_ONE, "ack"), end, self._door)[1]
        believed = sorted({found.topic for found in heard if found.payload == lie})
        happened = f"delivered: {', '.join(believed)}" if believed else "nobody heard any of it"
        self._note("spoofed_topic", happened, ok=not believed)

    def _subscriptions(self) -> None:
        theirs, base, share = f"dn/{PROBE_ONE}/#", self._base, "$share/check/"
        groups = {
            "foreign_subscription": [theirs, "dn/+/command", f"up/{PROBE_ONE}/#", "up/#"],
            "wildcard": ["#", "+/#", "$MQTT/#"],
            "shared_subscription": [f"{share}#", f"{share}{base}/{theirs}", f"{share}{base}/up/#"],
        }
        for check, filters in groups.items():
            tried = [f"{base}/{one}" if one.startswith(("dn", "up")) else one for one in filters]
            leaked = [one for one in tried if self._leaks(one)]
            self._note(check, f"it heard through {', '.join(leaked)}" if leaked else "it heard nothing", ok=not leaked)

    def _leaks(self, topic_filter: str) -> bool:
        """Whether a subscription of PROBE_TWO brings what is between the hub and PROBE_ONE."""
        spy = self._visitor(PROBE_TWO)
        try:
            if spy.open() or not spy.subscribe(topic_filter) or not spy.subscribe(self._own(PROBE_TWO)[0]):
                return False  # hanging up over it is a refusal too
            with self._inside(PROBE_ONE, self._own(PROBE_ONE)[0]) as victim:
                said = _words()
                self._hub.publish(self._to(PROBE_ONE, "command"), said)
                victim.hears(self._to(PROBE_ONE, "command"), said)
                victim.publish(self._of(PROBE_ONE, "event"), said)
                self._hub_hears(self._of(PROBE_ONE, "event"), said)
            return said in self._told(spy)
        finally:
            spy.close()

    def _told(self, visitor: Visitor) -> set[bytes]:
        """All that PROBE_TWO heard until a marker of its own."""
        end = _words()
        self._hub.publish(self._to(PROBE_TWO, "command"), end)
        _, before = wait_for(visitor.heard, self._to(PROBE_TWO, "command"), end, self._door)
        return {heard.payload for heard in before}

    def _client_id(self) -> None:
        taken = _name("taken")
        victim = Visitor(self._door, self._papers[PROBE_ONE], taken, persistent=True)
        victim.open()
        victim.subscribe(self._own(PROBE_ONE)[0])
        thief = Visitor(self._door, self._papers[PROBE_TWO], taken, persistent=True)
        refused = thief.open()
        heard: set[bytes] = set()
        said = _words()
        if not refused:
            thief.subscribe(self._own(PROBE_TWO)[0])
            self._hub.publish(self._to(PROBE_ONE, "command"), said)
            heard = self._told(thief)
        stayed = victim.inside
        victim.close()
        thief.close()
        self._forget_session(PROBE_ONE, taken)
        self._forget_session(PROBE_TWO, taken)
        self._note("client_id", "it heard the other's" if said in heard else "it heard nothing", ok=said not in heard)
        self._note("eviction", "the other stayed" if stayed else "the other was thrown out", ok=stayed)

    def _retained(self) -> None:
        topic, said = self._to(PROBE_ONE, "desired"), _words()
        self._hub.publish(topic, said, retain=True)
        with self._inside(PROBE_ONE, self._own(PROBE_ONE)[0]) as late:
            one, _ = wait_for(late.heard, topic, said, self._door)
        self._hub.publish(topic, b"", retain=True)
        self._note("retained", "it waited" if one else "it was gone", ok=one is not None)

    def _packet_size(self) -> None:
        said = secrets.token_bytes(LARGE_BYTES)
        with self._inside(PROBE_ONE, self._own(PROBE_ONE)[0]) as one:
            one.publish(self._of(PROBE_ONE, "blocks"), said)
            if not self._hub_hears(self._of(PROBE_ONE, "blocks"), said):
                self._note("packet_size", "not delivered from a device to the hub", ok=False)
                return
            self._hub.publish(self._to(PROBE_ONE, "blocks"), said)
            came = one.hears(self._to(PROBE_ONE, "blocks"), said)
        self._note("packet_size", "they came" if came else "not delivered from the hub to a device", ok=came)

    def _will(self) -> None:
        topic, last = self._of(PROBE_ONE, "event"), _words()
        visitor = Visitor(self._door, self._papers[PROBE_ONE], _name("will"), will=(topic, last))
        visitor.open()
        visitor.cut()
        came = self._hub_hears(topic, last)
        self._note("will", "it came" if came else "it did not come", ok=came)

    def _persistent(self) -> None:
        client_id, said = _name("away"), _words()
        first = Visitor(self._door, self._papers[PROBE_ONE], client_id, persistent=True)
        first.open()
        first.subscribe(self._own(PROBE_ONE)[0])
        first.close()
        self._hub.publish(self._to(PROBE_ONE, "command"), said)
        again = Visitor(self._door, self._papers[PROBE_ONE], client_id, persistent=True)
        again.open()
        came = again.hears(self._to(PROBE_ONE, "command"), said)
        again.close()
        self._forget_session(PROBE_ONE, client_id)
        self._note("persistent_session", "it waited" if came else "it was gone", ok=came)

    # How it is done -----------------------------------------------------------------------------------------

    def _note(self, check: str, happened: str, *, ok: bool) -> None:
        self._findings.append(finding(check, happened, ok=ok))

    def _visitor(self, name: str, *, old_tls: bool = False) -> Visitor:
        return Visitor(self._door, self._papers[name], _name(name), old_tls=old_tls)

    def _knock(self, visitor: Visitor) -> str:
        """Why it was not let in; "" when it was."""
        try:
            return visitor.open()
        finally:
            visitor.close()

    @contextmanager
    def _inside(self, name: str, *filters: str) -> Iterator[Visitor]:
        visitor = self._visitor(name)
        visitor.open()
        for one in filters:
            visitor.subscribe(one)
        try:
            yield visitor
        finally:
            visitor.close()

    def _hub_hears(self, topic: str, payload: bytes) -> bool:
        return wait_for(self._hub.heard, topic, payload, self._door)[0] is not None

    def _forget_session(self, name: str, client_id: str) -> None:
        """A clean start with the same id ends what the broker keeps for it."""
        visitor = Visitor(self._door, self._papers[name], client_id)
        visitor.open()
        visitor.close()

    def _of(self, name: str, channel: str) -> str:
        return f"{self._base}/up/{name}/{channel}"

    def _to(self, name: str, channel: str) -> str:
        return f"{self._base}/dn/{name}/{channel}"

    def _shared(self) -> str:
        return f"{self._base}/art/{_DIGEST}/blocks"

    def _own(self, name: str) -> tuple[str, str]:
        return f"{self._base}/dn/{name}/#", f"{self._base}/art/#"

    def _make_papers(self, folder: Path) -> None:
        """Certificates of the hub's authority for the probes, good for a day, and one of an authority of nobody's."""
        self._papers = {name: sign_papers(folder, self._authority, name, self._now) for name in PROBES}
        stranger = Authority(folder / "stranger")
        stranger.init(self._now)
        self._rogue = sign_papers(folder / "stranger", stranger, PROBE_ONE, self._now)


def sign_papers(folder: Path, authority: Authority, name: str, now: datetime) -> Papers:
    """A key and a device certificate for a probe, in files of that folder."""
    key = make_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256())
    papers = Papers(folder / f"{name}.crt", folder / f"{name}.key")
    papers.key.touch(mode=0o600)
    papers.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pem = request.public_bytes(Encoding.PEM).decode()
    papers.certificate.write_text(authority.sign_device(pem, name, now, days=1), encoding="ascii")
    return papers


def _name(what: str) -> str:
    return f"{what}-{secrets.token_hex(6)}"


def _words() -> bytes:
    return secrets.token_hex(8).encode()


class OwnHubSide:
    """The hub's end over a connection of its own, where no hub runs on this broker. A broker may hang up over what
    it does not carry: then it connects again."""

    def __init__(self, door: Door, papers: Papers, fleet: str) -> None:
        self.heard: queue.Queue[Heard] = queue.Queue()
        self._door, self._papers, self._filter = door, papers, hub_filter(fleet)
        self._visitor: Visitor | None = None

    def open(self) -> str:
        """Why the hub is not let in; "" when it is."""
        self._visitor = Visitor(self._door, self._papers, _name("hub-check"))
        self._visitor.heard = self.heard
        refused = self._visitor.open()
        if not refused:
            self._visitor.subscribe(self._filter)
        return refused

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Say it, and wait for the broker to take it."""
        if self._visitor is None or not self._visitor.inside:
            self.close()
            self.open()
        return self._visitor is not None and self._visitor.publish(topic, payload, retain=retain)

    def close(self) -> None:
        """Say goodbye."""
        if self._visitor is not None:
            self._visitor.close()


def check_apart(door: Door, authority: Authority, fleet: str, now: datetime) -> list[Finding]:
    """The whole check with a connection of the hub's own; for a broker on which no hub runs.

    Where a broker replaces client ids by the certificate's name, it would throw out a hub that runs there.
    """
    pair = authority.issue_client(HUB_NAME, now)
    hub = OwnHubSide(door, Papers(pair.certificate, pair.key), fleet)
    try:
        if refused := hub.open():
            return [finding("reach", f"the hub at {door.host}:{door.port}: {refused}", ok=False)]
        return Check(door, authority, fleet, now).run(hub)
    finally:
        hub.close()
