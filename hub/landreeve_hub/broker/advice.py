"""What the self-test expects of a broker, and what to change where it finds otherwise. Pure texts.

`landreeve_hub.broker.external` writes the whole of such a configuration.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Weight(StrEnum):
    """How bad it is when a check fails: MUST means that devices are not kept apart or facts get lost."""

    MUST = "must"
    SHOULD = "should"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One thing a broker does, in words, and the settings that make it do so."""

    expected: str
    weight: Weight = Weight.MUST
    mosquitto: str = ""
    nats: str = ""
    emqx: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. ``change`` maps a kind of broker to what to change there; empty when all is well."""

    check: str
    ok: bool
    weight: Weight
    expected: str
    happened: str
    change: dict[str, str] = field(default_factory=dict)


_ACL_MOSQUITTO = "acl_file with the patterns of `landreeve-hub broker config mosquitto`; reload with SIGHUP"
_ACL_NATS = "permissions of each user as in `landreeve-hub broker config nats`; nats-server --signal reload"
_ACL_EMQX = "acl.conf of `landreeve-hub broker config emqx`, authorization.no_match = deny"
_CERT_NATS = "mqtt.tls.ca_file and verify_and_map: true"
_CERT_EMQX = "listeners.ssl.default.ssl_options: cacertfile, verify = verify_peer, fail_if_no_peer_cert = true"

EXPECTATIONS: dict[str, Expectation] = {
    "reach": Expectation(
        "a device with a certificate of this hub's authority gets in, and the broker's own certificate is of that "
        "authority and names its host",
        mosquitto="cafile, certfile and keyfile of this hub's authority, use_identity_as_username true",
        nats="mqtt.tls cert_file, key_file, ca_file of this hub's authority; the users of `broker config nats`",
        emqx="ssl_options cacertfile, certfile, keyfile of this hub's authority; no password authentication",
    ),
    "tls_version": Expectation(
        "TLS 1.2 or newer only",
        mosquitto="tls_version tlsv1.2",
        nats="nothing: NATS takes no older one",
        emqx='ssl_options.versions = ["tlsv1.3", "tlsv1.2"]',
    ),
    "no_certificate": Expectation(
        "who shows no certificate is refused",
        mosquitto="require_certificate true, allow_anonymous false",
        nats=_CERT_NATS,
        emqx=_CERT_EMQX,
    ),
    "rogue_authority": Expectation(
        "a certificate of another authority is refused",
        mosquitto="cafile names this hub's authority alone, require_certificate true",
        nats=_CERT_NATS,
        emqx=_CERT_EMQX,
    ),
    "up": Expectation(
        "the hub hears what a device says on its own topics",
        mosquitto=_ACL_MOSQUITTO,
        nats=_ACL_NATS,
        emqx=_ACL_EMQX,
    ),
    "down": Expectation(
        "a device hears what the hub says to it, and the blocks meant for all",
        mosquitto=_ACL_MOSQUITTO,
        nats=_ACL_NATS,
        emqx=_ACL_EMQX,
    ),
    "spoofed_topic": Expectation(
        "what a device says in another's name, or in the hub's, reaches nobody",
        mosquitto=_ACL_MOSQUITTO,
        nats=_ACL_NATS,
        emqx=f"{_ACL_EMQX}, mqtt.peer_cert_as_username = cn",
    ),
    "foreign_subscription": Expectation(
        "a device hears nothing that is for another",
        mosquitto=_ACL_MOSQUITTO,
        nats=_ACL_NATS,
        emqx=_ACL_EMQX,
    ),
    "wildcard": Expectation(
        "a subscription to everything (#) brings nothing that is for another",
        mosquitto=_ACL_MOSQUITTO,
        nats=_ACL_NATS,
        emqx='{deny, all, subscribe, [{eq, "#"}, {eq, "+/#"}]} in acl.conf',
    ),
    "shared_subscription": Expectation(
        "a shared subscription ($share) brings nothing that is for another",
        mosquitto=_ACL_MOSQUITTO,
        nats="nothing: NATS has none",
        emqx="mqtt.shared_subscription = false",
    ),
    "client_id": Expectation(
        "who connects under another's client id hears nothing of what is for that one",
        mosquitto="use_username_as_clientid true",
        nats=_ACL_NATS,
        emqx="mqtt.peer_cert_as_clientid = cn",
    ),
    "eviction": Expectation(
        "who connects under another's client id does not end that one's connection",
        Weight.SHOULD,
        mosquitto="use_username_as_clientid true",
        nats="cannot be had; hub and agents use client ids nobody can guess, so it is harmless",
        emqx="mqtt.peer_cert_as_clientid = cn",
    ),
    "will": Expectation(
        "the last will of a device that vanishes is delivered",
        mosquitto=_ACL_MOSQUITTO,
        nats=_ACL_NATS,
        emqx=_ACL_EMQX,
    ),
    "persistent_session": Expectation(
        "what comes while a device is away waits for it in its session",
        Weight.SHOULD,
        mosquitto="persistence true, no persistent_client_expiration below an hour",
        nats="jetstream with a store_dir",
        emqx="mqtt.session_expiry_interval = 2h",
    ),
    "retained": Expectation(
        "a retained message waits for who comes later",
        mosquitto="retain_available true",
        nats="jetstream with a store_dir",
        emqx="mqtt.retain_available = true, retainer.enable = true",
    ),
    "packet_size": Expectation(
        "messages of a million bytes pass",
        mosquitto="max_packet_size 2097152",
        nats="max_payload: 2097152",
        emqx="mqtt.max_packet_size = 2MB, retainer.max_payload_size = 2MB",
    ),
}


def finding(check: str, happened: str, *, ok: bool) -> Finding:
    """What a check found, with what to change where it is not as expected."""
    known = EXPECTATIONS[check]
    change = {} if ok else {"mosquitto": known.mosquitto, "nats": known.nats, "emqx": known.emqx}
    return Finding(check, ok, known.weight, known.expected, happened, change)


def failed(findings: list[Finding]) -> list[Finding]:
    """Those that must not be as they are."""
    return [found for found in findings if not found.ok and found.weight is Weight.MUST]
