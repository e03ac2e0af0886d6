"""How an artifact should come: what the hub says to a device that can follow it (`Want.speaks`).

Devices that speak none of it are never told, and get blocks of the whole artifact as ever. A hub that knows none of
it sends blocks at once; a device takes them instead of an answer.
"""

from typing import Literal

from landreeve.wire.messages import Wire

DELTAS = "deltas"
# Also reads deltas of the method ``words``, which agents before it would take for damaged.
WORDS = "words"
LANES = "lanes"
MOST_BASES = 8


class Offer(Wire, frozen=True, kw_only=True):
    """Answers a `Want` that speaks of deltas, on ``dn/<id>/offer/<sha256>``; no blocks come until it is asked again.

    ``making``: ask again in some seconds. ``delta``: fetch the artifact ``delta`` of ``bytes`` bytes, whose blocks have
    the sha256s ``blocks``, and decode it against ``base`` (empty for none). ``whole``: nothing is smaller.
    """

    state: Literal["making", "delta", "whole"]
    delta: str = ""
    bytes: int = 0
    blocks: tuple[str, ...] = ()
    base: str = ""
    method: str = ""


class Lane(Wire, frozen=True, kw_only=True):
    """How to take part in the transfer of an artifact, on ``dn/<id>/lane/<sha256>``.

    ``report_s``: say what is missing that often (`Want.report`); 0 for never. ``shared``: whether to listen to the
    stream for all devices; a device that is slower than the others gets one of its own.
    """

    report_s: float
    shared: bool = True
