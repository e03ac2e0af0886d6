"""The Open Inference Protocol: what is understood, and that every refusal names its field."""

import json
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve_agent.serving import oip
from landreeve_agent.serving.errors import BadRequestError, TooLargeError
from landreeve_agent.serving.interface import Interface

from tests.agent.onnx_models import body, definition, pipeline

INTERFACE = Interface.of("delay", "1.0.0", definition(), pipeline().ranks)
NAN = float("nan")


def decode(document: object, json_bytes: int | None = None, tail: bytes = b"") -> oip.Infer:
    raw = msgspec.json.encode(document)
    return oip.decode(raw + tail, len(raw) if tail else json_bytes, INTERFACE)


def tensor(name: str, data: object, datatype: str = "FP64", shape: object = None) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}  # type: ignore[arg-type]


def inputs(**changes: object) -> dict[str, object]:
    """A correct request with inputs replaced (or dropped, by None)."""
    document = body()
    kept = [i for i in document["inputs"] if i["name"] not in changes]  # type: ignore[attr-defined]
    return document | {"inputs": kept + [i for i in changes.values() if i is not None]}


def test_columns_come_as_named_tensors_and_an_absent_optional_one_is_unknown() -> None:
    request = decode(body())
    assert request.captured() == [{"hour": 9.5, "wind": 4.0, "rain": None, "carrier": "UA"}]
    assert request.features is not None
    np.testing.assert_array_equal(request.features, [[9.5, 4.0, NAN, 2.0]])
    assert (request.id, request.rows, request.ats) == ("r1", 1, ["2026-01-31T09:30:00Z"])


def test_rows_may_be_a_column_of_shape_rows_by_one() -> None:
    document = {
        "inputs": [
            tensor("hour", [[1], [2]], shape=[2, 1]),
            tensor("wind", [0.5, 0], shape=[2, 1]),
            tensor("carrier", ["AA", "B6"], "BYTES"),
        ]
    }
    request = decode(document)
    assert request.columns["hour"] == [1, 2]
    assert request.rows == 2


def test_binary_tensors_say_the_same_as_json() -> None:
    texts = b"".join(struct.pack("<I", len(t)) + t for t in (b"AA", b"B6"))
    parts = [
        ("hour", "FP32", np.array([1.5, 2.5], "<f4").tobytes()),
        ("wind", "INT16", np.array([3, 4], "<i2").tobytes()),
        ("rain", "FP64", np.array([0.25, np.nan], "<f8").tobytes()),
        ("carrier", "BYTES", texts),
    ]
    heads = [
        {"name": n, "datatype": d, "shape": [2], "parameters": {"binary_data_size": len(raw)}} for n, d, raw in parts
    ]
    request = decode({"inputs": heads}, tail=b"".join(raw for _, _, raw in parts))
    assert request.columns == {"hour": [1.5, 2.5], "wind": [3, 4], "rain": [0.25, None], "carrier": ["AA", "B6"]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (inputs(wind=None), "input 'wind': missing"),
        (
            inputs(speed=tensor("speed", [1])),
            "input 'speed': unknown; the model's inputs are hour, wind, rain, carrier",
        ),
        (body() | {"inputs": [tensor("hour", [1]), tensor("hour", [1])]}, "input 'hour': occurs twice"),
        (inputs(wind=tensor("wind", ["x"], "BYTES")), "input 'wind': datatype 'BYTES', expected a number"),
        (inputs(carrier=tensor("carrier", [1])), "input 'carrier': datatype 'FP64', expected a category: BYTES"),
        (inputs(wind=tensor("wind", ["fast"])), "input 'wind': value 0: expected a number in m/s, got str 'fast'"),
        (inputs(wind=tensor("wind", [True])), "input 'wind': value 0: expected a number"),
        (inputs(wind=tensor("wind", [None])), "input 'wind': value 0 is required"),
        (inputs(wind=tensor("wind", [1e300])), "input 'wind': value 0: 1e+300 does not fit into 32 bits"),
        (inputs(hour=tensor("hour", [25])), "input 'hour': value 0: 25 is above the highest accepted value 24"),
        (inputs(wind=tensor("wind", [1, 2])), "input 'wind': shape [2] does not fit"),
        (inputs(wind=tensor("wind", [1, 2], shape=[1])), "input 'wind': 2 values in data, 1 in shape"),
        (inputs(wind=tensor("wind", [1], shape=[1, 3])), "input 'wind': shape [1, 3] does not fit"),
        (inputs(wind={"name": "wind", "datatype": "FP64", "shape": [1]}), "input 'wind': has neither data nor"),
        (inputs(carrier=tensor("carrier", [""], "BYTES")), "input 'carrier': value 0: text must have 1 to 200"),
        ({"inputs": []}, "inputs: empty"),
        ({"inputs": [{"name": 1}]}, "$.inputs[0].name"),
        ({}, "missing required field `inputs`"),
        (body(parameters={"at": "yesterday"}), "parameters.at: 'yesterday' is no RFC 3339 time"),
        (body(parameters={"at": "2026-01-31T09:30:00"}), "parameters.at: '2026-01-31T09:30:00' is no RFC 3339"),
        (body(parameters={"ids": ["a", "b"]}), "parameters.ids: 2 ids for 1 rows"),
        (body(id="x" * 201), "id: 201 characters"),
        (body(outputs=[{"name": "price"}]), "outputs[0].name: 'price' is unknown; there are: probability"),
    ],
)
def test_bad_request_names_the_field(document: object, words: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        decode(document)
    assert words in str(refusal.value)


def test_infinity_in_a_binary_tensor_is_refused() -> None:
    document = inputs(wind={"name": "wind", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}})
    with pytest.raises(BadRequestError, match="input 'wind': value 0 must be finite"):
        decode(document, tail=np.array([np.inf], "<f4").tobytes())


@pytest.mark.parametrize(
    ("size", "tail", "words"),
    [
        (8, b"\0" * 4, "binary_data_size 8 goes beyond the 4 bytes left"),
        (-1, b"\0" * 4, "binary_data_size -1 goes beyond"),
        (4, b"\0" * 9, "5 bytes after the last binary tensor"),
        (3, b"\0" * 3, "3 binary bytes, 1 x FP32 = 4"),
    ],
)
def test_binary_sizes_must_fit(size: int, tail: bytes, words: str) -> None:
    document = inputs(wind={"name": "wind", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": size}})
    with pytest.raises(BadRequestError) as refusal:
        decode(document, tail=tail)
    assert words in str(refusal.value)


def test_torn_texts_are_refused() -> None:
    head = {"name": "carrier", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}
    with pytest.raises(BadRequestError, match="element 0 of 9 bytes goes beyond the tensor"):
        decode(inputs(carrier=head), tail=struct.pack("<I", 9) + b"UA")
    with pytest.raises(BadRequestError, match="element 0 is no UTF-8"):
        decode(inputs(carrier=head), tail=struct.pack("<I", 2) + b"\xff\xff")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"null", b'{"inputs":[{"shape":[99999999999999999999]}]}'])
def test_any_bytes_are_a_bad_request_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(BadRequestError):
        oip.decode(raw, None, INTERFACE)


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
_INPUT = st.fixed_dictionaries(
    {"name": st.sampled_from(["hour", "wind", "rain", "carrier", "x"])},
    optional={
        "shape": st.lists(st.integers(-1, 3), max_size=3),
        "datatype": st.sampled_from(["FP64", "INT8", "BYTES", "BOOL", "?"]),
        "data": st.lists(_LEAVES | st.lists(_LEAVES, max_size=2), max_size=3),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-3, 30)}),
    },
)


@given(st.lists(_INPUT, max_size=5), st.binary(max_size=40), st.booleans())
def test_whatever_is_sent_is_decoded_wholly_or_refused(sent: list[object], tail: bytes, with_tail: bool) -> None:
    try:
        request = decode({"inputs": sent}, tail=tail if with_tail else b"")
    except BadRequestError:
        return  # any other error would be a defect, and fails this test
    assert all(set(row) == {"hour", "wind", "rain", "carrier"} for row in request.captured())
    assert len(request.captured()) == request.rows


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(TooLargeError, match="at most 4096"):
        decode({"inputs": [tensor("hour", [1], shape=[5000])]})


def test_header_length_outside_the_body_is_refused() -> None:
    with pytest.raises(BadRequestError, match="Inference-Header-Content-Length: 999"):
        oip.decode(b"{}", 999, INTERFACE)


def test_answer_in_json_and_in_binary_carries_the_same_numbers() -> None:
    who = INTERFACE
    p = np.array([0.25, 0.5], np.float32)
    request = oip.Infer("r", None, [None, None], 2, {}, [], (False,))
    text, json_bytes = oip.encode(who, request, ["r/0", "r/1"], [p])
    document = json.loads(text)
    assert json_bytes is None
    assert document["outputs"] == [{"name": "probability", "datatype": "FP32", "shape": [2], "data": [0.25, 0.5]}]
    assert document["parameters"] == {"ids": ["r/0", "r/1"]}
    assert json.loads(oip.encode_values(who, request, ["r/0", "r/1"], [0.25, 0.5])) == document
    request.wanted = (True,)
    raw, json_bytes = oip.encode(who, request, ["r/0", "r/1"], [p])
    assert json_bytes is not None
    assert json.loads(raw[:json_bytes])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(raw[json_bytes:], "<f4").tolist() == [0.25, 0.5]
