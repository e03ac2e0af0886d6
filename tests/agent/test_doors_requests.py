"""Requests over MQTT: what they ask, whom they are answered to, and what is refused."""

import json
from typing import Any

import msgspec
import pytest
from landreeve_agent.doors.mqtt import Answers
from landreeve_agent.doors.requests import (
    Asked,
    Incoming,
    Refused,
    ReplyTo,
    answer_payload,
    error_payload,
    parse_request,
)

BODY = {
    "id": "a",
    "parameters": {"at": "2026-01-31T09:30:00Z"},
    "inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [1.10]}],
}


def parse(
    document: Any, topic: str = "shop/ai/delay/request/till-1", response: str = "", correlation: bytes = b""
) -> Any:
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse_request("shop/ai", Incoming(topic, payload, response, correlation))


def test_the_protocols_own_body_goes_through_unchanged() -> None:
    asked = parse(BODY | {"client": "ignored"})
    assert (asked.model, asked.id, asked.reply_to) == ("delay", "a", ReplyTo("shop/ai/delay/response/till-1"))
    assert json.loads(asked.body) == BODY
    assert b"1.1" in asked.body


def test_a_row_in_short_becomes_the_protocols_body() -> None:
    asked = parse({"id": 7, "row": {"hour": 9, "carrier": "UA", "rain": None}, "at": "2026-01-31T09:30:00Z"})
    assert json.loads(asked.body) == {
        "id": "7",
        "inputs": [
            {"name": "hour", "datatype": "FP64", "shape": [1], "data": [9]},
            {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["UA"]},
        ],
        "parameters": {"at": "2026-01-31T09:30:00Z"},
    }


def test_rows_may_lack_what_others_have() -> None:
    asked = parse({"id": "b", "rows": [{"hour": 1}, {"hour": 2, "rain": 0.5}]})
    assert [tensor["data"] for tensor in json.loads(asked.body)["inputs"]] == [[1, 2], [None, 0.5]]


def test_the_response_topic_and_its_correlation_come_before_any_client() -> None:
    asked = parse(BODY, response="shop/ai/answers/x", correlation=b"\x00\x01")
    assert asked.reply_to == ReplyTo("shop/ai/answers/x", b"\x00\x01")


def test_a_repeat_is_recognised_and_another_request_is_not() -> None:
    one = parse({"row": {"hour": 1}}, response="shop/ai/r", correlation=b"1")
    assert one == parse({"row": {"hour": 1}}, response="shop/ai/r", correlation=b"1")
    others = [
        parse({"row": {"hour": 1}}, response="shop/ai/r", correlation=b"2"),
        parse({"row": {"hour": 2}}, response="shop/ai/r", correlation=b"1"),
        parse({"row": {"hour": 1}}, response="shop/ai/s", correlation=b"1"),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4
    assert len({one.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"{", "payload: "),
        (b"\xff", "payload: "),
        (b"[1]", "payload: Expected `object`"),
        (b"[" * 100_000, "payload: "),
        ({"row": {"hour": 1}}, "id: missing"),
        ({"id": "a"}, "neither inputs nor row nor rows"),
        ({"id": "a", "row": 5}, "row: Expected `object`"),
        ({"id": "a", "rows": []}, "rows: empty"),
        ({"id": "a", "row": {"page": [[1]]}}, "tensors go into inputs"),
    ],
)
def test_a_malformed_payload_is_refused_to_its_sender(document: Any, words: str) -> None:
    refused = parse(document)
    assert isinstance(refused, Refused)
    assert words in refused.reason
    assert refused.reply_to == ReplyTo("shop/ai/delay/response/till-1")


@pytest.mark.parametrize(
    ("topic", "response", "document"),
    [
        ("shop/ai/delay/request", "", BODY),
        ("shop/ai/delay/request", "", BODY | {"client": "a/b"}),
        ("shop/ai/delay/request/+", "", BODY),
        ("shop/ai/delay/request", "door/unlock", BODY),
        ("shop/ai/delay/request", "shop/ai/delay/request", BODY),
        ("shop/ai/delay/request", "shop/ai/+/response", BODY),
        ("shop/ai/a/b/c/request", "shop/ai/r", BODY),
    ],
)
def test_nobody_is_answered_where_an_answer_could_do_harm(topic: str, response: str, document: Any) -> None:
    refused = parse(document, topic, response)
    assert isinstance(refused, Refused)
    assert refused.reply_to is None


def test_the_answer_has_the_form_of_the_request() -> None:
    outputs = [{"name": "probability", "datatype": "FP32", "shape": [2], "data": [0.25, 0.5]}]
    body = msgspec.json.encode({"model_name": "delay", "model_version": "2", "id": "a", "outputs": outputs})
    assert answer_payload(parse(BODY), body) == body
    many = json.loads(answer_payload(parse({"id": "a", "rows": [{"hour": 1}, {"hour": 2}]}), body))
    assert many["rows"] == [
        {"id": "a/0", "outputs": {"probability": 0.25}},
        {"id": "a/1", "outputs": {"probability": 0.5}},
    ]
    one = body.replace(b"[2]", b"[1]").replace(b"0.25,0.5", b"0.25")
    assert json.loads(answer_payload(parse({"id": "a", "row": {"hour": 1}}), one)) == {
        "id": "a", "model": "delay", "version": "2", "outputs": {"probability": 0.25},
    }  # fmt: skip


def test_a_refusal_says_whether_to_ask_again() -> None:
    assert json.loads(error_payload("a", 429, "busy", again=True)) == {
        "id": "a", "error": "busy", "status": 429, "again": True,
    }  # fmt: skip


def test_stored_answers_are_bounded_by_number_and_bytes() -> None:
    answers = Answers(most=3, most_bytes=10)
    for key in "abcd":
        answers.put(key, b"12")
    assert (answers.get("a"), answers.get("d")) == (None, b"12")
    answers.put("e", b"123456789")
    assert [answers.get(key) for key in "bcde"] == [None, None, None, b"123456789"]


def test_asked_is_what_a_correct_message_gives() -> None:
    assert isinstance(parse(BODY), Asked)
