"""What a broker must enforce, and the configuration that makes mosquitto and NATS do so. Text in, text out.

Identity is the certificate's common name: a device writes ``up/<CN>/#`` and reads ``dn/<CN>/#`` and ``art/#``,
the hub the reverse. Both brokers demand a client certificate of the hub's CA.

mosquitto replaces every client id by the certificate's name. NATS cannot: whoever knows a client id can evict
its owner (and reads nothing by it), so hub and agents use client ids with a random part.
"""

from dataclasses import dataclass
from pathlib import Path

from landreeve.wire.ids import check_id
from landreeve.wire.topics import ROOT

HUB_NAME = "hub"
# Two names no device can have (`landreeve_hub.fleet.enrolment`): the self-test comes under them.
PROBE_ONE, PROBE_TWO = "landreeve-check-1", "landreeve-check-2"
PROBES = (PROBE_ONE, PROBE_TWO)
MAX_PACKET_BYTES = 2 * 1024 * 1024
# mosquitto waits for 20 acknowledgements by default; the hub acknowledges in batches after each commit.
MAX_INFLIGHT = 2000
MAX_QUEUED = 100_000
# Of one client: what a flood can make the broker keep for the hub; beyond it is dropped, and said again.
MAX_QUEUED_BYTES = 256 * 1024 * 1024
# Of one connection to NATS, which counts a topic ending in # twice; a device asks for two topics.
MAX_SUBSCRIPTIONS = 64


@dataclass(frozen=True, slots=True)
class BrokerPlan:
    """Where the broker listens, whom it believes, where it keeps its files. ``ca`` may hold several authorities;
    ``crl`` is what mosquitto refuses certificates by (NATS knows its users one by one)."""

    fleet: str
    host: str
    port: int
    folder: Path
    ca: Path
    certificate: Path
    key: Path
    crl: Path | None = None

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"


@dataclass(frozen=True, slots=True)
class Guests:
    """Who may come in: the devices by name (NATS needs them one by one), and those that may no longer."""

    devices: frozenset[str] = frozenset()
    revoked: frozenset[str] = frozenset()


def mosquitto_configuration(plan: BrokerPlan, acl: Path, *, as_root: bool) -> str:
    """``mosquitto.conf`` for the plan.

    ``use_username_as_clientid`` makes a take-over of another's session impossible: the broker replaces the
    client id by the certificate's name. As root mosquitto would become the user ``mosquitto``, who cannot read
    the hub's 0700 folder: then it keeps its user, which is right inside a container or a test alone.
    """
    user = ["user root"] if as_root else []
    lines = [
        *user,
        "per_listener_settings false",
        "allow_anonymous false",
        f"acl_file {acl}",
        "persistence true",
        f"persistence_location {plan.folder}/",
        "persistence_file mosquitto.db",
        "autosave_interval 30",
        f"log_dest file {plan.log}",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "connection_messages false",
        "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        f"max_packet_size {MAX_PACKET_BYTES}",
        f"max_inflight_messages {MAX_INFLIGHT}",
        f"max_queued_messages {MAX_QUEUED}",
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        f"listener {plan.port} {plan.host}",
        f"cafile {plan.ca}",
        f"certfile {plan.certificate}",
        f"keyfile {plan.key}",
        *([f"crlfile {plan.crl}"] if plan.crl else []),
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
    ]
    return "\n".join(lines) + "\n"


def mosquitto_acl(fleet: str, guests: Guests) -> str:
    """The ACL file. Patterns hold for every name; a revoked name is denied everything before they apply, and the hub
    may clear the one retained topic it left behind."""
    base = f"{ROOT}/{check_id(fleet)}"
    lines = [
        f"user {HUB_NAME}",
        f"topic write {base}/dn/#",
        f"topic write {base}/art/#",
        f"topic read {base}/up/#",
        *(f"topic write {base}/up/{check_id(name)}/state" for name in sorted(guests.revoked)),
        "",
    ]
    for name in sorted(guests.revoked):
        lines += [f"user {check_id(name)}", "topic deny #", ""]
    lines += [f"pattern write {base}/up/%u/#", f"pattern read {base}/dn/%u/#", f"pattern read {base}/art/#"]
    return "\n".join(lines) + "\n"


def nats_configuration(plan: BrokerPlan, guests: Guests) -> str:
    """``nats-server.conf`` for the plan; NATS knows no patterns, so every device is listed.

    MQTT topics become subjects: ``/`` is ``.`` and ``.`` is ``//``. ``$MQTT.sub.>`` carries a client's own
    QoS 1 deliveries; NATS refuses MQTT subscriptions to it. The monitor tells the hub who took another's client id
    (`landreeve_hub.broker.takeovers`): on the loopback alone, on a port that NATS writes into a file here.
    """
    listed = ",\n    ".join(nats_users(plan.fleet, guests))
    return f"""server_name: landreeve
listen: "127.0.0.1:-1"
http: "127.0.0.1:-1"
ports_file_dir: "{plan.folder}"
max_payload: {MAX_PACKET_BYTES}
max_subscriptions: {MAX_SUBSCRIPTIONS}
log_file: "{plan.log}"
pid_file: "{plan.folder / "nats.pid"}"
jetstream {{ store_dir: "{plan.folder / "jetstream"}" }}
mqtt {{
  listen: "{plan.host}:{plan.port}"
  max_ack_pending: {MAX_INFLIGHT}
  tls {{
    cert_file: "{plan.certificate}"
    key_file: "{plan.key}"
    ca_file: "{plan.ca}"
    verify_and_map: true
  }}
}}
authorization {{
  users: [
    {listed}
  ]
}}
"""


def nats_users(fleet: str, guests: Guests) -> list[str]:
    """The ``users`` of the configuration: the hub, every device that may come in, and the probes of the self-test."""
    names = {*(guests.devices - guests.revoked), *PROBES}
    return [_nats_hub(fleet, guests.revoked), *(_nats_device(fleet, name) for name in sorted(names))]


def _nats_hub(fleet: str, revoked: frozenset[str]) -> str:
    base = _subject(ROOT, fleet)
    left_behind = [f"{base}.up.{_subject(check_id(name))}.state" for name in sorted(revoked)]
    return _nats_user(HUB_NAME, [f"{base}.dn.>", f"{base}.art.>", *left_behind], [f"{base}.up.>", f"{base}.up"])


def _nats_device(fleet: str, name: str) -> str:
    base, own = _subject(ROOT, fleet), _subject(name)
    reads = [f"{base}.dn.{own}.>", f"{base}.dn.{own}", f"{base}.art.>", f"{base}.art"]
    return _nats_user(name, [f"{base}.up.{own}.>"], reads)


def _nats_user(name: str, publish: list[str], subscribe: list[str]) -> str:
    def quoted(subjects: list[str]) -> str:
        return ", ".join(f'"{subject}"' for subject in subjects)

    own_deliveries = ["$MQTT.sub.>", "$MQTT.deliver.pubrel.>"]
    return (
        f'{{ user: "CN={check_id(name)}", permissions: {{ publish: [{quoted(publish)}], '
        f"subscribe: [{quoted(subscribe + own_deliveries)}] }} }}"
    )


def _subject(*topics: str) -> str:
    """MQTT topics as one NATS subject.

    >>> _subject("lr/1", "north.sea")
    'lr.1.north//sea'
    """
    return ".".join(".".join(level.replace(".", "//") for level in topic.split("/")) for topic in topics)
