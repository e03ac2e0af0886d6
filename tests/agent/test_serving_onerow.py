"""The short way to read a row takes nothing that the full way would refuse, and takes it alike."""

import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.manifest import Column
from landreeve_agent.serving import oip
from landreeve_agent.serving.errors import BadRequestError
from landreeve_agent.serving.interface import Interface
from landreeve_agent.serving.messages import Body, Infer
from landreeve_agent.serving.onerow import MOST_LAYOUTS
from landreeve_models.definition import Definition

from tests.agent.onnx_models import CARRIERS, COLUMNS, definition, pipeline

RANKS = pipeline().ranks
STRICT = Interface.of("delay", "1", definition(), RANKS)
LOOSE = Interface.of(
    "delay",
    "1",
    msgspec.structs.replace(definition(), columns=tuple(msgspec.structs.replace(c, required=False) for c in COLUMNS)),
    RANKS,
)
_NUMBERS = (
    st.integers(-2, 26)
    | st.floats(allow_nan=False)
    | st.sampled_from([0, 24, 24.0, -0.0, 3.5e38, 10**40, 2**63, 2**64])
)
_TEXTS = st.sampled_from([*CARRIERS, "unseen", "", "x" * 201]) | st.text(max_size=3)
_VALUES = {"carrier": _TEXTS | st.none() | st.integers(0, 3)} | {
    name: _NUMBERS | st.none() | st.booleans() for name in ("hour", "wind", "rain")
}
_SHAPES = st.sampled_from([[1], [1], [1, 1], [1, 1, 1], [2], []])
_DATATYPES = st.sampled_from(["FP64", "FP64", "INT64", "BYTES", "BOOL", "?"])
_CODES = {"FP64": "d", "FP32": "f", "INT64": "q", "BOOL": "?", "FP16": "e"}


def full(head: bytes, tail: bytes, who: Interface) -> Infer | None:
    """The request as it is read the full way; None when it is refused."""
    try:
        return oip.read(msgspec.json.decode(head, type=Body), tail, who)
    except (BadRequestError, msgspec.DecodeError):
        return None


def features(request: Infer) -> Any:
    """The row as the graph takes it, whichever way it was read."""
    if request.features is not None:
        return np.array(request.features, np.float32)
    return pipeline().encode_columns(request.columns, 1)


def assert_alike(head: bytes, tail: bytes, json_bytes: int | None, who: Interface) -> bool:
    """Whether the short way took it; when it did, the full way takes it and says the same."""
    assert who.one_row is not None
    found = who.one_row.json(head) if json_bytes is None else who.one_row.binary(head, tail)
    expected = full(head, tail, who)
    if expected is None:
        assert found is None, "taken, and refused the full way"
        return False
    got = oip.decode(head + tail, json_bytes, who)
    assert json.dumps(got.dicts(), sort_keys=True) == json.dumps(expected.dicts(), sort_keys=True)
    np.testing.assert_array_equal(features(got), features(expected))
    return found is not None


@st.composite
def json_tensors(draw: st.DrawFn) -> list[dict[str, Any]]:
    names = draw(st.permutations(["hour", "wind", "rain", "carrier"]))
    names = names[: draw(st.integers(2, 4))] + draw(st.lists(st.sampled_from(["hour", "x"]), max_size=1))
    plain = draw(st.booleans())
    usual = {"carrier": "BYTES"}
    return [
        {
            "name": name,
            "datatype": usual.get(name, "FP64") if plain else draw(_DATATYPES),
            "shape": draw(_SHAPES) if not plain else [1],
            "data": [draw(_VALUES.get(name, _NUMBERS))],
        }
        for name in names
    ]


@given(json_tensors(), st.sampled_from([STRICT, LOOSE]))
def test_json_is_taken_only_as_the_full_way_takes_it(tensors: list[dict[str, Any]], who: Interface) -> None:
    assert_alike(json.dumps({"id": "r", "inputs": tensors}).encode(), b"", None, who)


@pytest.mark.parametrize("number", ["1" + "0" * 40, "-1" + "0" * 40, "1" + "0" * 400, str(2**64), str(2**63), "-1e39"])
@pytest.mark.parametrize("name", ["hour", "wind"])
def test_a_number_beyond_64_bits_is_taken_only_as_the_full_way_takes_it(name: str, number: str) -> None:
    words = {"hour": "1", "wind": "1", "carrier": '"AA"', name: number}
    tensors = [
        f'{{"name":"{n}","datatype":"{"BYTES" if n == "carrier" else "FP64"}","shape":[1],"data":[{word}]}}'
        for n, word in words.items()
    ]
    assert_alike(f'{{"inputs":[{",".join(tensors)}]}}'.encode(), b"", None, STRICT)


def _raw(datatype: str, value: Any, cut: int = 0) -> bytes:
    if datatype == "BYTES":
        return struct.pack("<I", len(value) + cut) + bytes(value)
    return struct.pack("<" + _CODES[datatype], value)


def _binary(values: dict[str, tuple[str, Any]], cut: int = 0) -> tuple[bytes, bytes]:
    tensors, tail = [], b""
    for name, (datatype, value) in values.items():
        raw = _raw(datatype, value, cut)
        size = {"binary_data_size": len(raw)}
        tensors.append({"name": name, "datatype": datatype, "shape": [1], "parameters": size})
        tail += raw
    return msgspec.json.encode({"inputs": tensors}), tail


_ELEMENTS = st.one_of(
    st.tuples(st.just("FP64"), st.floats(-1, 30) | st.sampled_from([float("nan"), float("inf"), 1e300, 24.0])),
    st.tuples(st.sampled_from(["FP32", "FP16"]), st.sampled_from([1.5, 24.0, float("nan"), float("-inf")])),
    st.tuples(st.just("INT64"), st.integers(-(2**63), 2**63 - 1) | st.integers(0, 24)),
    st.tuples(st.just("BOOL"), st.booleans()),
)
_BYTES = st.tuples(st.just("BYTES"), st.sampled_from([b"AA", b"B6", b"new", b"", b"\xff", b"y" * 201]))


@given(
    st.permutations(["hour", "wind", "rain", "carrier"]).flatmap(lambda n: st.integers(2, 4).map(lambda k: n[:k])),
    st.lists(_ELEMENTS, min_size=3, max_size=3),
    _BYTES,
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([STRICT, LOOSE]),
)
def test_binary_columns_are_taken_only_as_the_full_way_takes_them(
    names: list[str], numbers: list[Any], text: Any, cut: int, who: Interface
) -> None:
    left = iter(numbers)
    values = {name: text if name == "carrier" else next(left) for name in names}
    head, tail = _binary(values, cut)
    taken = assert_alike(head, tail, len(head), who)
    assert who.one_row is not None
    named = who.one_row.raw(names, [d for d, _ in values.values()], [_raw(d, v, cut) for d, v in values.values()])
    assert (named is not None) == taken
    if named is not None:
        found = who.one_row.binary(head, tail)
        assert found is not None
        assert named[1] == found[1]
        np.testing.assert_array_equal(named[2], found[2])


def test_columns_by_name_are_taken_only_with_a_datatype_of_their_kind() -> None:
    assert STRICT.one_row is not None
    names, raws = [*USUAL], [_raw(*value) for value in USUAL.values()]
    assert STRICT.one_row.raw(names, ["FP64", "FP64", "FP64", "BYTES"], raws)
    assert not STRICT.one_row.raw(names, ["FP64", "FP64", "BYTES", "BYTES"], raws)
    assert not STRICT.one_row.raw(names, ["FP64", "FP64", "UINT9", "BYTES"], raws)
    assert not STRICT.one_row.raw(["hour", "wind", "storm", "carrier"], ["FP64", "FP64", "FP64", "BYTES"], raws)


@given(
    st.lists(st.sampled_from([0, 1, 2, 3, 24, -1, 0.5, float("nan"), float("inf")]), min_size=3, max_size=5),
    st.sampled_from(["FP32", "FP64", "FP16"]),
    st.sampled_from([STRICT, LOOSE]),
)
def test_a_matrix_is_taken_only_as_the_full_way_takes_it(row: list[float], datatype: str, who: Interface) -> None:
    tail = struct.pack(f"<{len(row)}{_CODES[datatype]}", *row)
    tensor = {"name": "x", "datatype": datatype, "shape": [1, len(row)], "parameters": {"binary_data_size": len(tail)}}
    head = msgspec.json.encode({"inputs": [tensor]})
    assert_alike(head, tail, len(head), who)


USUAL = {"hour": ("FP64", 9.5), "wind": ("FP64", 4.0), "rain": ("FP64", 0.25), "carrier": ("BYTES", b"UA")}


@pytest.mark.parametrize("names", [[*USUAL], [*USUAL][::-1], ["carrier", "hour", "wind"]])
def test_the_usual_requests_are_taken_in_any_order_without_the_optional(names: list[str]) -> None:
    head, tail = _binary({name: USUAL[name] for name in names})
    for _ in range(2):  # a layout that is new, and one that is known
        assert assert_alike(head, tail, len(head), STRICT)
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, (_, value) in USUAL.items()}
    tensors = [{"name": n, "datatype": USUAL[n][0], "shape": [1, 1], "data": [plain[n]]} for n in names]
    for _ in range(2):
        assert assert_alike(msgspec.json.encode({"inputs": tensors}), b"", None, STRICT)


def test_a_matrix_of_one_row_is_taken() -> None:
    tail = np.array([[9.5, 4, np.nan, 2]], "<f4").tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    head = msgspec.json.encode({"inputs": [tensor]})
    assert assert_alike(head, tail, len(head), STRICT)


@pytest.mark.parametrize("names", [["only"], ['quo"te', "b"], ["x", "y"]])
def test_columns_of_any_name_and_number_are_served(names: list[str]) -> None:
    columns = tuple(Column(name=name, kind="number") for name in names)
    who = Interface.of("odd", "1", Definition(name="odd", purpose="t", columns=columns, label="y", output="p"))
    tensors = [{"name": name, "datatype": "FP64", "shape": [1], "data": [1.5]} for name in names]
    request = oip.decode(msgspec.json.encode({"inputs": tensors}), None, who)
    assert request.dicts() == [dict.fromkeys(names, 1.5)]


def test_what_strangers_send_is_kept_within_bounds() -> None:
    who = Interface.of("delay", "1", definition(), RANKS)
    assert who.one_row is not None
    for length in range(600):
        rain: tuple[str, Any] = [("FP64", 1.5), ("FP32", 2.5), ("INT64", 3)][length // 200]
        head, tail = _binary(USUAL | {"carrier": ("BYTES", b"z" * (length % 200 + 1)), "rain": rain})
        oip.decode(head + tail, len(head), who)
    assert len(who.one_row._layouts) <= MOST_LAYOUTS
