"""Topics of the contract, typed both ways: value to text and text to value.

``lr/1/<fleet>/up/<device>/<channel>``    device to hub
``lr/1/<fleet>/dn/<device>/<channel>``    hub to device
``lr/1/<fleet>/art/<sha256>/blocks``      blocks many devices want at once
``lr/1/<fleet>/up/<device>/want/<sha256>``  which blocks of an artifact the device lacks
``lr/1/<fleet>/dn/<device>/want/<sha256>``  which blocks of an upload the hub lacks
``lr/1/<fleet>/dn/<device>/offer/<sha256>``  a smaller way to an artifact
``lr/1/<fleet>/dn/<device>/lane/<sha256>``  how to take part in the transfer of an artifact

A segment is an identifier (`landreeve.wire.ids`): no ``+``, ``#``, ``/`` or NUL can occur, so a formatted
topic never widens into a filter.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from landreeve.wire.ids import check_digest, check_id

ROOT = "lr/1"


class Up(StrEnum):
    """Channels a device publishes on."""

    BIRTH = "birth"
    STATE = "state"
    EVENT = "event"
    METRIC = "metric"
    DRIFT = "drift"
    LOG = "log"
    AUDIT = "audit"
    BLOCKS = "blocks"


class Down(StrEnum):
    """Channels a device listens on."""

    DESIRED = "desired"
    ACK = "ack"
    COMMAND = "command"
    BLOCKS = "blocks"
    PRESENCE = "presence"
    WITNESS = "witness"


@dataclass(frozen=True, slots=True)
class UpTopic:
    fleet: str
    device: str
    channel: Up


@dataclass(frozen=True, slots=True)
class DownTopic:
    fleet: str
    device: str
    channel: Down


@dataclass(frozen=True, slots=True)
class SharedBlocksTopic:
    fleet: str
    digest: str


@dataclass(frozen=True, slots=True)
class UpWantTopic:
    fleet: str
    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class DownWantTopic:
    fleet: str
    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class DownOfferTopic:
    fleet: str
    device: str
    digest: str


@dataclass(frozen=True, slots=True)
class DownLaneTopic:
    fleet: str
    device: str
    digest: str


Topic = UpTopic | DownTopic | SharedBlocksTopic | UpWantTopic | DownWantTopic | DownOfferTopic | DownLaneTopic


class BadTopicError(ValueError):
    """A topic that is not part of the contract; the text says which segment is wrong."""


def format_topic(topic: Topic) -> str:
    """The topic's text.

    >>> format_topic(UpTopic("demo", "d-1", Up.EVENT))
    'lr/1/demo/up/d-1/event'
    """
    match topic:
        case UpTopic(fleet, device, channel):
            tail = f"up/{check_id(device)}/{channel.value}"
        case DownTopic(fleet, device, down):
            tail = f"dn/{check_id(device)}/{down.value}"
        case SharedBlocksTopic(fleet, digest):
            tail = f"art/{check_digest(digest)}/blocks"
        case UpWantTopic(fleet, device, digest):
            tail = f"up/{check_id(device)}/want/{check_digest(digest)}"
        case DownWantTopic(fleet, device, digest):
            tail = f"dn/{check_id(device)}/want/{check_digest(digest)}"
        case DownOfferTopic(fleet, device, digest):
            tail = f"dn/{check_id(device)}/offer/{check_digest(digest)}"
        case DownLaneTopic(fleet, device, digest):
            tail = f"dn/{check_id(device)}/lane/{check_digest(digest)}"
        case _:
            assert_never(topic)
    return f"{ROOT}/{check_id(fleet)}/{tail}"


def parse_topic(text: str) -> Topic:
    """The topic a text names; `BadTopicError` when it is not one of ours.

    >>> parse_topic("lr/1/demo/dn/d-1/ack")
    DownTopic(fleet='demo', device='d-1', channel=<Down.ACK: 'ack'>)
    """
    try:
        return _parse(text.split("/"))
    except ValueError as error:
        raise BadTopicError(f"topic {text[:120]!r}: {error}") from error


def _parse(parts: list[str]) -> Topic:
    match parts:
        case ["lr", "1", fleet, "up", device, "want", digest]:
            return UpWantTopic(check_id(fleet), check_id(device), check_digest(digest))
        case ["lr", "1", fleet, "dn", device, "want", digest]:
            return DownWantTopic(check_id(fleet), check_id(device), check_digest(digest))
        case ["lr", "1", fleet, "dn", device, "offer", digest]:
            return DownOfferTopic(check_id(fleet), check_id(device), check_digest(digest))
        case ["lr", "1", fleet, "dn", device, "lane", digest]:
            return DownLaneTopic(check_id(fleet), check_id(device), check_digest(digest))
        case ["lr", "1", fleet, "up", device, channel]:
            return UpTopic(check_id(fleet), check_id(device), Up(channel))
        case ["lr", "1", fleet, "dn", device, channel]:
            return DownTopic(check_id(fleet), check_id(device), Down(channel))
        case ["lr", "1", fleet, "art", digest, "blocks"]:
            return SharedBlocksTopic(check_id(fleet), check_digest(digest))
        case ["lr", version, *_] if version != "1":
            raise ValueError(f"contract version {version!r} is not known here; this side speaks version 1")
        case _:
            raise ValueError("not a topic of the contract")


def device_filters(fleet: str, device: str) -> tuple[str, ...]:
    """What a device subscribes to."""
    base = f"{ROOT}/{check_id(fleet)}"
    return (f"{base}/dn/{check_id(device)}/#", f"{base}/art/#")


def hub_filter(fleet: str) -> str:
    """What the hub subscribes to."""
    return f"{ROOT}/{check_id(fleet)}/up/#"
