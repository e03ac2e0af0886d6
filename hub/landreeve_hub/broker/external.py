"""What to put into a broker that the hub does not run: mosquitto, NATS or EMQX. Text in, text out.

The rules are those of `landreeve_hub.broker.plan`; `landreeve-hub broker check` proves that they hold.
"""

from collections.abc import Mapping
from enum import StrEnum

from landreeve.wire.ids import check_id
from landreeve.wire.topics import ROOT

from landreeve_hub.broker.plan import (
    HUB_NAME,
    MAX_INFLIGHT,
    MAX_PACKET_BYTES,
    MAX_QUEUED,
    MAX_QUEUED_BYTES,
    MAX_SUBSCRIPTIONS,
    Guests,
    mosquitto_acl,
    nats_users,
)


class External(StrEnum):
    """Brokers whose configuration we can write. ``proven`` ones are run with it, and checked, by our tests."""

    MOSQUITTO = "mosquitto"
    NATS = "nats"
    EMQX = "emqx"

    @property
    def proven(self) -> bool:
        return self is not External.EMQX


_UNPROVEN = (
    "NEVER RUN BY US: this text follows the documentation of EMQX 5.8; no EMQX has read it here.",
    "Before a hub or a box uses this broker, `landreeve-hub broker check mqtts://HOST:8883` must find nothing wrong.",
)


def configuration(kind: External, fleet: str, guests: Guests) -> Mapping[str, str]:
    """File names to texts. The broker's certificate must name its host and be of the hub's authority: the hub makes it
    with `landreeve-hub broker certificate HOST`."""
    match kind:
        case External.MOSQUITTO:
            return {"landreeve.conf": _mosquitto(), "landreeve.acl": mosquitto_acl(fleet, guests)}
        case External.NATS:
            return {"landreeve.conf": _nats(fleet, guests)}
        case External.EMQX:
            return {"base.hocon": _emqx(), "acl.conf": _emqx_acl(fleet, guests)}


def _mosquitto() -> str:
    return f"""# /etc/mosquitto/conf.d/landreeve.conf; reload with: systemctl reload mosquitto
per_listener_settings false
allow_anonymous false
acl_file /etc/mosquitto/landreeve.acl
persistence true
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages {MAX_INFLIGHT}
max_queued_messages {MAX_QUEUED}
max_queued_bytes {MAX_QUEUED_BYTES}
listener 8883
cafile /etc/mosquitto/landreeve/ca.crt
certfile /etc/mosquitto/landreeve/broker.crt
keyfile /etc/mosquitto/landreeve/broker.key
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""


def _nats(fleet: str, guests: Guests) -> str:
    listed = ",\n    ".join(nats_users(fleet, guests))
    return f"""# NATS knows no patterns: write this again, and reload, after each enrolment and revocation.
server_name: landreeve
max_payload: {MAX_PACKET_BYTES}
max_subscriptions: {MAX_SUBSCRIPTIONS}
jetstream {{ store_dir: "/var/lib/nats/jetstream" }}
mqtt {{
  port: 8883
  max_ack_pending: {MAX_INFLIGHT}
  tls {{
    cert_file: "/etc/nats/landreeve/broker.crt"
    key_file: "/etc/nats/landreeve/broker.key"
    ca_file: "/etc/nats/landreeve/ca.crt"
    verify_and_map: true
  }}
}}
authorization {{
  users: [
    {listed}
  ]
}}
"""


def _emqx() -> str:
    heading = "".join(f"# {line}\n" for line in _UNPROVEN)
    return f"""{heading}# etc/base.hocon (EMQX 5.8 and later; before: etc/emqx.conf)
listeners.ssl.default {{
  bind = "0.0.0.0:8883"
  ssl_options {{
    cacertfile = "etc/landreeve/ca.crt"
    certfile = "etc/landreeve/broker.crt"
    keyfile = "etc/landreeve/broker.key"
    versions = ["tlsv1.3", "tlsv1.2"]
    verify = verify_peer
    fail_if_no_peer_cert = true
  }}
}}
listeners.tcp.default.enable = false
listeners.ws.default.enable = false
listeners.wss.default.enable = false
mqtt {{
  peer_cert_as_username = cn
  peer_cert_as_clientid = cn
  max_packet_size = 2MB
  max_inflight = 1000
  max_mqueue_len = {MAX_QUEUED}
  retain_available = true
  shared_subscription = false
  session_expiry_interval = 2h
}}
retainer.max_payload_size = 2MB
authorization {{
  no_match = deny
  deny_action = ignore
  sources = [{{ type = file, enable = true, path = "etc/acl.conf" }}]
}}
"""


def _emqx_acl(fleet: str, guests: Guests) -> str:
    base = f"{ROOT}/{check_id(fleet)}"
    revoked = [f'{{deny, {{user, "{check_id(name)}"}}, all, ["#"]}}.' for name in sorted(guests.revoked)]
    lines = [
        *(f"%% {line}" for line in _UNPROVEN),
        *revoked,
        f'{{allow, {{user, "{HUB_NAME}"}}, publish, ["{base}/dn/#", "{base}/art/#"]}}.',
        f'{{allow, {{user, "{HUB_NAME}"}}, subscribe, ["{base}/up/#"]}}.',
        '{deny, all, subscribe, [{eq, "#"}, {eq, "+/#"}, "$SYS/#"]}.',
        f'{{allow, all, publish, ["{base}/up/${{username}}/#"]}}.',
        f'{{allow, all, subscribe, ["{base}/dn/${{username}}/#", "{base}/art/#"]}}.',
        "{deny, all}.",
    ]
    return "\n".join(lines) + "\n"
