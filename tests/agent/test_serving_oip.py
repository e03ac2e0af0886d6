"""The Open Inference Protocol: what is understood, and that every refusal names its field."""

import json
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.manifest import TensorSpec
from landreeve_agent.serving import oip
from landreeve_agent.serving.errors import BadRequestError, TooLargeError
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.messages import Infer
from landreeve_models.definition import Definition

from tests.agent.onnx_models import COLUMNS, body, definition, pipeline

INTERFACE = Interface.of("delay", "1.0.0", definition(), pipeline().ranks)
NAN = float("nan")
OPTIONAL = Interface.of(
    "delay",
    "1.0.0",
    msgspec.structs.replace(
        definition(),
        columns=tuple(msgspec.structs.replace(c, required=c.kind == "number" and c.required) for c in COLUMNS),
    ),
    pipeline().ranks,
)


def decode(document: object, json_bytes: int | None = None, tail: bytes = b"") -> Infer:
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
    assert request.dicts() == [{"hour": 9.5, "wind": 4.0, "rain": None, "carrier": "UA"}]
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
    assert all(set(row) == {"hour", "wind", "rain", "carrier"} for row in request.dicts())
    assert len(request.dicts()) == request.rows


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(TooLargeError, match="at most 4096"):
        decode({"inputs": [tensor("hour", [1], shape=[5000])]})


def test_header_length_outside_the_body_is_refused() -> None:
    with pytest.raises(BadRequestError, match="Inference-Header-Content-Length: 999"):
        oip.decode(b"{}", 999, INTERFACE)


def test_answer_in_json_and_in_binary_carries_the_same_numbers() -> None:
    who = INTERFACE
    p = np.array([0.25, 0.5], np.float32)
    request = Infer("r", None, [None, None], 2, {}, [], (False,))
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


def test_the_answer_to_one_row_is_the_same_by_its_short_way() -> None:
    request = Infer('r "1"', None, [None], 1, {}, [], (False,))
    p = np.array([0.1], np.float32)
    values = p.tolist()
    text, _ = oip.encode(INTERFACE, request, ["r"], [p])
    assert json.loads(oip.encode_values(INTERFACE, request, ["r"], values)) == json.loads(text)
    request.wanted = (True,)
    raw, json_bytes = oip.encode(INTERFACE, request, ["r"], [p])
    short, short_bytes = oip.encode_raw(INTERFACE, request, ["r"], values)
    assert json.loads(short[:short_bytes]) == json.loads(raw[:json_bytes])
    assert short[short_bytes:] == p.tobytes()


def matrix(rows: list[list[float]], **changes: object) -> tuple[dict[str, object], bytes]:
    """All columns as one tensor, in binary."""
    x = np.array(rows, "<f4")
    head = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    return {"inputs": [head | changes]}, x.tobytes()


def test_all_columns_may_come_as_one_matrix_with_ranks_for_categories() -> None:
    document, tail = matrix([[9.5, 4, np.nan, 2], [1, 2, 3, np.nan]])
    request = oip.decode(*_whole(document, tail), OPTIONAL)
    assert request.dicts() == [
        {"hour": 9.5, "wind": 4.0, "rain": None, "carrier": "UA"},
        {"hour": 1.0, "wind": 2.0, "rain": 3.0, "carrier": None},
    ]
    np.testing.assert_array_equal(np.array(request.features), [[9.5, 4, NAN, 2], [1, 2, 3, NAN]])
    told = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [[9.5, 4, None, 0]]}
    assert decode({"inputs": [told]}).dicts() == [{"hour": 9.5, "wind": 4, "rain": None, "carrier": "AA"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([25, 1, 1, 0], "input 'hour': value 0: 25.0 is above the highest accepted value 24"),
        ([np.nan, 1, 1, 0], "input 'hour': value 0 is required"),
        ([1, np.inf, 1, 0], "input 'wind': value 0 must be finite"),
        ([1, 1, 1, 3], "input 'x': row 0, 'carrier': 3.0 is no rank from 0 to 2"),
        ([1, 1, 1, 0.5], "input 'x': row 0, 'carrier': 0.5 is no rank from 0 to 2"),
        ([1, 1, 1, -1], "input 'x': row 0, 'carrier': -1.0 is no rank from 0 to 2"),
        ([1, 1, 1], "input 'x': shape [1, 3] does not fit [rows, 4]"),
    ],
)
def test_a_matrix_is_checked_like_columns(row: list[float], words: str) -> None:
    document, tail = matrix([row])
    with pytest.raises(BadRequestError) as refusal:
        decode(document, tail=tail)
    assert words in str(refusal.value)


def test_key_priority_and_time_limit_come_as_parameters() -> None:
    request = decode(body(parameters={"key": "c-7", "priority": 9, "timeout": 2500}))
    assert (request.key, request.priority, request.timeout_us) == ("c-7", 3, 2500)
    assert (decode(body()).key, decode(body()).priority, decode(body()).timeout_us) == ("", 2, 0)


TENSORS = Interface.of(
    "corner",
    "1.0.0",
    Definition(
        name="corner",
        purpose="tests",
        label="y",
        task="classification",
        tensors=(
            TensorSpec(name="image", datatype="FP32", shape=(-1, 2, 2)),
            TensorSpec(name="ids", datatype="INT64", shape=(-1, -1)),
        ),
        outputs=(
            TensorSpec(name="scores", datatype="FP32", shape=(-1, 3)),
            TensorSpec(name="rest", datatype="FP32", shape=(-1, 1)),
        ),
    ),
)


def test_tensors_are_taken_from_the_requests_own_bytes_in_the_graphs_order() -> None:
    image, ids = np.arange(8, dtype="<f4").reshape(2, 2, 2), np.array([[1, 2, 3], [4, 5, 6]], "<i8")
    heads = [
        {"name": "ids", "datatype": "INT64", "shape": [2, 3], "parameters": {"binary_data_size": ids.nbytes}},
        {"name": "image", "datatype": "FP32", "shape": [2, 2, 2], "parameters": {"binary_data_size": image.nbytes}},
    ]
    request = oip.decode(*_whole({"inputs": heads}, ids.tobytes() + image.tobytes()), TENSORS)
    np.testing.assert_array_equal(request.tensors[0], image)
    np.testing.assert_array_equal(request.tensors[1], ids)
    assert not request.tensors[0].flags.owndata


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"datatype": "FP64"}, "input 'image': datatype 'FP64', expected FP32"),
        ({"shape": [1, 2, 3]}, "input 'image': shape [1, 2, 3] does not fit [-1, 2, 2]"),
        ({"data": [1, 2, 3]}, "input 'image': 3 values in data, its shape is [1, 2, 2]"),
        ({"data": ["a", 1, 2, 3]}, "input 'image': data: could not convert string to float"),
        ({"data": [1, 2, 3, None]}, "input 'image': holds NaN or infinity"),
        ({"name": "picture"}, "input 'picture': unknown; the model's inputs are image, ids"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changes: dict[str, object], words: str) -> None:
    image: dict[str, object] = {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}
    with pytest.raises(BadRequestError) as refusal:
        oip.decode(msgspec.json.encode({"inputs": [image | changes, ids]}), None, TENSORS)
    assert words in str(refusal.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_tensor_with_no_number_in_it_is_refused_and_a_large_sum_is_not(bad: float) -> None:
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}

    def ask(values: list[float]) -> Infer:
        raw = np.array(values, "<f4").tobytes()
        image = {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "parameters": {"binary_data_size": 16}}
        return oip.decode(*_whole({"inputs": [image, ids]}, raw), TENSORS)

    with pytest.raises(BadRequestError, match="input 'image': holds NaN or infinity"):
        ask([1, 2, 3, bad])
    assert ask([3e38, 3e38, 3e38, 1]).tensors[0].size == 4


def test_only_the_outputs_that_were_asked_for_are_sent() -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 1], "data": [1]}
    document = {"id": "r", "inputs": [image, ids], "outputs": [{"name": "rest"}]}
    request = oip.decode(msgspec.json.encode(document), None, TENSORS)
    outputs = [np.zeros((1, 3), np.float32), np.ones((1, 1), np.float32)]
    answer, _ = oip.encode(TENSORS, request, ["r"], outputs)
    assert json.loads(answer)["outputs"] == [{"name": "rest", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]


def _whole(document: object, tail: bytes) -> tuple[bytes, int]:
    head = msgspec.json.encode(document)
    return head + tail, len(head)
