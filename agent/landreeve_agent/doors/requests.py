"""Requests for inference as MQTT messages, and their answers. Pure: topics and bytes in, values out.

A request goes to ``PREFIX/MODEL/request`` or ``PREFIX/MODEL/request/CLIENT``. With MQTT 5 the answer goes to its
response topic, which must lie under the prefix, with its correlation data; else to ``PREFIX/MODEL/response/CLIENT``,
CLIENT being the topic's or the payload's member ``client``. The payload is the JSON body of the Open Inference
Protocol, or in short ``{"id": "…", "row": {"column": value, …}}`` or ``{"id": "…", "rows": […]}``, with ``at``.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from landreeve_agent.doors.layout import decode_answer

_CLIENT = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_HOW = 'send {"id": "…", "row": {…}} or the JSON body of the Open Inference Protocol'
_ENCODE = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that arrived under the requests' topics."""

    topic: str
    payload: bytes
    response_topic: str = ""
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where an answer goes."""

    topic: str
    correlation: bytes = b""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: ``body`` is what the inference server is sent; ``rows`` is how many rows the short form has, None
    for the protocol's own; ``key`` is the same for every repeat of the message."""

    model: str
    id: str
    key: str
    body: bytes
    reply_to: ReplyTo
    rows: int | None
    single: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is no request. Without ``reply_to`` nobody can be told."""

    reason: str
    reply_to: ReplyTo | None = None
    id: str = ""


class _BadRequestError(ValueError):
    """The payload cannot be used; the text names the member."""


def request_filter(prefix: str) -> str:
    """What to subscribe to. ``#`` also matches nothing, so the shorter topic is in it.

    >>> request_filter("shop/ai")
    'shop/ai/+/request/#'
    """
    return f"{prefix}/+/request/#"


def parse_request(prefix: str, incoming: Incoming) -> Asked | Refused:
    """What a message asks for, or why it is not answered by a model."""
    model, client = _place(prefix, incoming.topic)
    if not model:
        return Refused(f"topic {incoming.topic!r}: requests go to {prefix}/MODEL/request or …/request/CLIENT")
    members = _members(incoming.payload)
    reply_to = _reply_to(prefix, model, client, incoming, members)
    if isinstance(reply_to, Refused):
        return reply_to
    if isinstance(members, str):
        return Refused(members, reply_to)
    try:
        return _asked(model, incoming, members, reply_to)
    except _BadRequestError as error:
        return Refused(str(error), reply_to, _text(members, "id"))


def _place(prefix: str, topic: str) -> tuple[str, str]:
    """Model and client in a topic; both empty when it is no request's."""
    match topic.removeprefix(f"{prefix}/").split("/"):
        case [model, "request"]:
            return model, ""
        case [model, "request", client] if client:
            return model, client
    return "", ""


def _members(payload: bytes) -> dict[str, msgspec.Raw] | str:
    """The payload's members, each still as it came, or what is wrong with it."""
    try:
        return msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"payload: {error}; {_HOW}"


def _reply_to(
    prefix: str, model: str, client: str, incoming: Incoming, members: Mapping[str, msgspec.Raw] | str
) -> ReplyTo | Refused:
    topic = incoming.response_topic
    if topic:
        # Whoever may ask models must not make this box speak to other devices of the site, nor to itself.
        if not topic.startswith(f"{prefix}/") or set("+#\0") & set(topic) or any(_place(prefix, topic)):
            return Refused(f"response topic {topic!r}: it must lie under {prefix}/ and not be a request's")
        return ReplyTo(topic, incoming.correlation)
    if not client and not isinstance(members, str):
        client = _text(members, "client")
    if not client:
        return Refused("no response topic, and no client in topic or payload: there is nobody to answer")
    if not _CLIENT.fullmatch(client):
        return Refused(f"client {client[:40]!r}: 1 to 128 letters, digits and ._:@-")
    return ReplyTo(f"{prefix}/{model}/response/{client}")


def _asked(model: str, incoming: Incoming, members: Mapping[str, msgspec.Raw], reply_to: ReplyTo) -> Asked:
    digest = hashlib.sha256()
    for part in (model.encode(), reply_to.topic.encode(), incoming.correlation, incoming.payload):
        digest.update(len(part).to_bytes(8, "big") + part)
    key = digest.hexdigest()
    identity = _text(members, "id")
    if not identity:
        if not incoming.correlation:
            raise _BadRequestError("id: missing; without one a repeated request could not be told from a new one")
        identity = f"mqtt-{key[:32]}"
    if "inputs" in members:
        body = {name: value for name, value in members.items() if name != "client"}
        body["id"] = msgspec.Raw(_ENCODE(identity))
        return Asked(model, identity, key, _ENCODE(body), reply_to, None, single=False)
    rows, single = _rows(members)
    body_of_rows = _body(identity, rows, members.get("at"))
    return Asked(model, identity, key, body_of_rows, reply_to, len(rows), single=single)


def _rows(members: Mapping[str, msgspec.Raw]) -> tuple[list[dict[str, Any]], bool]:
    """The rows of the short form, and whether it was a single one."""
    single = "row" in members
    name = "row" if single else "rows"
    if name not in members:
        raise _BadRequestError(f"neither inputs nor row nor rows is there; {_HOW}")
    try:
        if single:
            return [msgspec.json.decode(members["row"], type=dict[str, Any])], True
        rows = msgspec.json.decode(members["rows"], type=list[dict[str, Any]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise _BadRequestError(f"{name}: {error}") from error
    if not rows:
        raise _BadRequestError("rows: empty")
    return rows, False


def _body(identity: str, rows: Sequence[Mapping[str, Any]], at: msgspec.Raw | None) -> bytes:
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    inputs = [_input(name, [row.get(name) for row in rows]) for name in names]
    body: dict[str, Any] = {"id": identity, "inputs": inputs}
    if at is not None:
        body["parameters"] = {"at": at}
    return _ENCODE(body)


def _input(name: str, values: list[Any]) -> dict[str, Any]:
    """A column: text is a category, anything else a number; the inference server says if it is neither."""
    if any(isinstance(value, list | dict) for value in values):
        raise _BadRequestError(f"row: {name!r} is no plain value; tensors go into inputs (Open Inference Protocol)")
    kind = "BYTES" if any(isinstance(value, str) for value in values) else "FP64"
    return {"name": name, "datatype": kind, "shape": [len(values)], "data": values}


def _text(members: Mapping[str, msgspec.Raw], name: str) -> str:
    """A member that is text or a whole number; empty when it is absent or something else."""
    try:
        value = msgspec.json.decode(members[name]) if name in members else ""
    except msgspec.DecodeError:
        return ""
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def answer_payload(asked: Asked, body: bytes) -> bytes:
    """The answer's payload: the inference server's own body, or for the short form its outputs row by row."""
    if asked.rows is None:
        return body
    answer = decode_answer(body, asked.rows)
    head = {"id": asked.id, "model": asked.model, "version": answer.version}
    if asked.single:
        return _ENCODE({**head, "outputs": answer.rows[0]})
    ids = [f"{asked.id}/{index}" if asked.rows > 1 else asked.id for index in range(asked.rows)]
    rows = [{"id": one, "outputs": outputs} for one, outputs in zip(ids, answer.rows, strict=True)]
    return _ENCODE({**head, "rows": rows})


def error_payload(identity: str, status: int, reason: str, *, again: bool = False) -> bytes:
    """A refusal as a payload; ``status`` as HTTP has it, ``again`` when the same request may succeed later."""
    return _ENCODE({"id": identity, "error": reason, "status": status, "again": again})
