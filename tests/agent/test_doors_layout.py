"""Rows of models whose inputs are tensors, and cells of text as the datatype has them. The worker judges."""

import json

import msgspec
import pytest
from landreeve.release.manifest import TensorSpec
from landreeve_agent.doors.layout import BadRowError, Layout, decode_answer, encode_rows
from landreeve_agent.serving import oip
from landreeve_agent.serving.interface import Interface
from landreeve_models.definition import Definition, derived_columns

SPECS = (
    TensorSpec(name="page", datatype="FP32", shape=(-1, 2, 2)),
    TensorSpec(name="length", datatype="INT64", shape=(-1,)),
)
OUTPUTS = (TensorSpec(name="scores", datatype="FP32", shape=(-1, 3)),)
DEFINITION = Definition(
    name="pages", purpose="tests", label="kind", task="classification", tensors=SPECS, outputs=OUTPUTS,
    columns=derived_columns(SPECS),
)  # fmt: skip


def layout(*specs: TensorSpec) -> Layout:
    metadata = {"name": "pages", "versions": ["1"], "inputs": specs or SPECS, "outputs": OUTPUTS}
    return Layout.parse(msgspec.json.encode(metadata))


def test_nested_lists_become_the_tensors_of_many_rows() -> None:
    made = layout()
    cells = [made.cells({"page": [[i, 1], [2, 3]], "length": str(i), "note": "x"}) for i in range(3)]
    body = encode_rows(made, cells, ["a", "b", "c"], [None] * 3, "r")
    request = oip.decode(body, None, Interface.of("pages", "1", DEFINITION))
    assert [tensor.shape for tensor in request.tensors] == [(3, 2, 2), (3,)]
    assert request.tensors[1].tolist() == [0, 1, 2]
    assert request.ids == ["a", "b", "c"]


def test_outputs_of_many_numbers_are_cut_into_rows() -> None:
    output = {"name": "scores", "datatype": "FP32", "shape": [2, 3], "data": [0, 1, 2, 3, 4, 5]}
    answer = decode_answer(json.dumps({"model_version": "1", "outputs": [output]}).encode(), 2)
    assert [row["scores"] for row in answer.rows] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("datatype", "text", "value"),
    [("FP64", " 1.5 ", 1.5), ("FP64", "", None), ("FP32", "nan", None), ("INT64", "7", 7), ("BOOL", "TRUE", True),
     ("BYTES", " as it is ", " as it is "), ("BYTES", "", None)],
)  # fmt: skip
def test_text_is_read_as_the_datatype_has_it(datatype: str, text: str, value: object) -> None:
    assert layout(TensorSpec(name="c", datatype=datatype, shape=(-1,))).cells({"c": text}) == {"c": value}


@pytest.mark.parametrize(("datatype", "text"), [("FP64", "1,5"), ("FP64", "-inf"), ("INT64", "1.5"), ("BOOL", "yes")])
def test_text_of_another_kind_is_refused_by_name(datatype: str, text: str) -> None:
    with pytest.raises(BadRowError, match=r"^c: "):
        layout(TensorSpec(name="c", datatype=datatype, shape=(-1,))).cells({"c": text})
