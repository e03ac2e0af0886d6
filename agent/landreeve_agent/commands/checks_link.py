"""``landreeve doctor`` on everything that lies between this box and its hub: clock, keys, names, trust, broker."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import paho.mqtt.client as paho
from landreeve.cli import Check
from landreeve.trust.certs import BadCertificateError
from landreeve.wire.codec import encode
from landreeve.wire.messages import DeviceState
from landreeve.wire.topics import Up, UpTopic, device_filters, format_topic
from paho.mqtt.enums import CallbackAPIVersion

from landreeve_agent.config import StateFolder
from landreeve_agent.link.carrier import CarrierError, tls_context
from landreeve_agent.link.desk import believing, sentence
from landreeve_agent.link.identity import BadIdentityError, Identity, load_identity
from landreeve_agent.link.keyring import TRUST, Keyring, KeyringError
from landreeve_agent.link.renewal import due_at

WAIT_S = 10.0
CLOCK_OFF = timedelta(minutes=2)
_SET_CLOCK = "set the clock (timedatectl set-ntp true)"


def examine_link(state: StateFolder, *, broker: bool) -> list[Check]:
    """Every check of a box that has joined. ``broker`` also tries the broker as this device, which interrupts the
    link of a running agent for a moment."""
    now = datetime.now(UTC)
    try:
        identity = load_identity(state.root)
    except BadIdentityError as error:
        return [Check("hub", "fail", str(error), "restore identity.json from a backup, or join again")]
    if identity is None:
        return [Check("hub", "ok", "not joined: this box works alone")]
    checks = [Check("hub", "ok", f"joined as {identity.device} ({identity.site})")]
    checks += _certificate(state, identity, now)
    names = {urlsplit(identity.hub_url).hostname or "", identity.broker_host}
    checks += [_name(name) for name in sorted(names)]
    checks.append(_desk(state, identity, now))
    if broker:
        checks += _Visit(state, identity).checks()
    return checks


def _certificate(state: StateFolder, identity: Identity, now: datetime) -> list[Check]:
    keyring = Keyring(state.root / "keys")
    try:
        one, key = keyring.described(), keyring.key()
        tls_context(keyring.folder)
    except (OSError, BadCertificateError, KeyringError, CarrierError) as error:
        return [Check("certificate", "fail", str(error), "restore keys/ from a backup, or join again with a new token")]
    del key
    if one.common_name != identity.device:
        fact = f"it names {one.common_name}, identity.json {identity.device}: joining again was cut off"
        return [Check("certificate", "fail", fact, "landreeve join TOKEN --again, with the same token")]
    left = one.not_after - now
    fact = f"{left / timedelta(days=1):.0f} days left; renewed from {due_at(one):%Y-%m-%d} on"
    if left < timedelta(0):
        late = "expired; the running agent gets a new one with its old key, if the hub still allows it"
        return [Check("certificate", "fail", late, "landreeve run, then landreeve doctor; else join again")]
    if now > due_at(one) + (one.not_after - due_at(one)) / 4:
        return [Check("certificate", "warn", fact + ", which does not happen", "see the check of the hub's desk")]
    return [Check("certificate", "ok", fact)]


def _name(name: str) -> Check:
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError as error:
        return Check("name", "fail", f"{name} is not found: {error}", "check DNS, or write it into /etc/hosts")
    return Check("name", "ok", f"{name} is {', '.join(found[:3])}")


def _desk(state: StateFolder, identity: Identity, now: datetime) -> Check:
    """The hub over HTTPS: where certificates come from; and its time, which is better than none."""
    try:
        context = believing((state.root / "keys" / TRUST).read_bytes())
        with httpx2.Client(verify=context, timeout=WAIT_S, trust_env=False) as client:
            answer = client.get(f"{identity.hub_url.rstrip('/')}/enrol/v1/ca")
    except (OSError, ValueError, httpx2.HTTPError) as error:
        return Check("hub over HTTPS", "warn", sentence(error), f"{identity.hub_url} must be reachable to renew")
    told = answer.headers.get("date", "")
    off = now - parsedate_to_datetime(told) if told else timedelta(0)
    if abs(off) > CLOCK_OFF:
        return Check("hub over HTTPS", "fail", f"this clock is {off} from the hub's", _SET_CLOCK)
    return Check("hub over HTTPS", "ok", f"it answers; clocks differ by {abs(off).total_seconds():.0f} s")


@dataclass
class _Visit:
    """One connection to the broker as this device, with this device's rights."""

    state: StateFolder
    identity: Identity

    def checks(self) -> list[Check]:
        where = f"{self.identity.broker_host}:{self.identity.broker_port}"
        try:
            return self._visit(where)
        except (OSError, ValueError, CarrierError, ssl.SSLError) as error:
            return [Check("broker", "fail", f"{where}: {error}", "check the firewall and, at the hub, its doctor")]

    def _visit(self, where: str) -> list[Check]:
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=f"{self.identity.device}-doctor", reconnect_on_failure=False
        )
        client.tls_set_context(tls_context(self.state.root / "keys"))
        granted: list[bool] = []
        client.on_subscribe = lambda _c, _d, _m, codes, _p: granted.append(not codes[0].is_failure)
        client.connect(self.identity.broker_host, self.identity.broker_port, keepalive=20)
        client.loop_start()
        try:
            if not _wait(client.is_connected):
                fix = "if it was revoked, join again; else landreeve-hub doctor"
                return [Check("broker", "fail", f"{where} does not let this device in", fix)]
            client.subscribe(device_filters(self.identity.fleet, self.identity.device)[0], qos=1)
            _wait(lambda: bool(granted))
            own = self._publish(client, self.identity.device)
            foreign = self._publish(client, "not-this-device")
        finally:
            client.disconnect()
            client.loop_stop()
        return [Check("broker", "ok", f"{where} lets this device in"), *_judged(granted == [True], own, foreign)]

    def _publish(self, client: paho.Client, device: str) -> bool:
        """Whether the broker takes a message on that device's topic. Session 0 is older than any: the hub passes over
        it."""
        topic = format_topic(UpTopic(self.identity.fleet, device, Up.STATE))
        state = DeviceState(session=0, online=False, at=datetime.now(UTC).isoformat())
        sent = client.publish(topic, encode(state), qos=1)
        _wait(lambda: sent.is_published() or not client.is_connected())
        time.sleep(0.2)  # a broker that hangs up over it does so at once
        return client.is_connected()


def _judged(reads: bool, own: bool, foreign: bool) -> list[Check]:
    if not (reads and own):
        what = "reads" if not reads else "writes"
        return [Check("broker rules", "fail", f"it refuses what this device {what}", "landreeve-hub broker check")]
    if foreign:
        fact = "own topics work; a foreign one brought no refusal (mosquitto drops such messages silently)"
        return [Check("broker rules", "ok", fact, "landreeve-hub broker check judges that from both ends")]
    return [Check("broker rules", "ok", "own topics work, a foreign one is refused")]


def _wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def mend(state: StateFolder) -> list[str]:
    """What is safe to put right without asking: permissions, and what cut-off renewals have left; in sentences."""
    done = []
    keys = state.root / "keys"
    for path, mode in ((state.root, 0o700), *((one, 0o700 if one.is_dir() else 0o600) for one in _private(keys))):
        if path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)
            done.append(f"{path}: only its owner may use it now")
    before = len(list(keys.glob("pair-*"))) if keys.is_dir() else 0
    if before > 1:
        Keyring(keys).tidy()
        done.append(f"{keys}: {before - len(list(keys.glob('pair-*')))} left-over pairs removed")
    return done


def _private(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield folder
        yield from (path for path in sorted(folder.rglob("*")) if not path.is_symlink())
