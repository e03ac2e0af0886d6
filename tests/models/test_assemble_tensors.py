"""A release of a tensor model holds together: graph, definition, rows and claims; what does not is refused by name."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from landreeve.release.layout import read_folder
from landreeve.release.manifest import BadReleaseError, Lineage
from landreeve_models import onnx_policy
from landreeve_models.assemble import TensorParts, assemble_tensors
from landreeve_models.baseline import Baseline
from landreeve_models.definition import load_definition
from landreeve_models.evaluate import cost
from landreeve_models.inference import run_graph
from landreeve_models.samples import BadSampleError, read_calibration, read_first_row, read_golden
from onnx import TensorProto, helper

from tests.models.tensor_releases import (
    CREATED,
    image_definition,
    image_graph,
    image_release,
    images,
    series,
    series_definition,
    series_release,
    text_definition,
    text_release,
)

RELEASES = {"image": image_release, "text": text_release, "series": series_release}


def parts(**changes: Any) -> TensorParts:
    """A small picture classifier that is all right unless told otherwise."""
    x, label = images(40, 1)
    usual: dict[str, Any] = {
        "definition": image_definition(),
        "graph": image_graph(),
        "calibration": (images(20, 2)[0],),
        "golden": (x,),
        "golden_labels": label,
        "lineage": Lineage(recipe="test"),
        "created": CREATED,
    }
    return TensorParts(**usual | changes)


def changed_graph(change: Any) -> bytes:
    model = onnx.load_model_from_string(image_graph())
    change(model.graph)
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("kind", RELEASES)
def test_every_kind_of_release_is_whole_and_reproducible(kind: str, tmp_path: Path) -> None:
    folder = RELEASES[kind](tmp_path / "one")
    packed, definition = read_folder(folder), load_definition(folder)
    assert packed.digest == read_folder(RELEASES[kind](tmp_path / "two")).digest
    assert packed.config.signature == definition.signature()
    onnx_policy.check(packed.file("model.onnx"), signature=packed.config.signature)
    golden = read_golden(folder, definition)
    for got, expected in zip(run_graph(packed.file("model.onnx"), golden.inputs), golden.expected, strict=True):
        np.testing.assert_allclose(got, expected, atol=definition.gates.max_output_difference)
    claimed = packed.config.gates.metrics[definition.gates.metric]
    assert cost(definition.gates.metric, golden.expected, golden) == pytest.approx(-claimed, abs=1e-6)
    sample, first = read_calibration(folder, definition), read_first_row(folder, definition)
    assert len(sample) == len(first) == len(definition.tensors)
    for whole, row in zip(sample, first, strict=True):
        assert (row.dtype, row.shape) == (whole.dtype, (1, *whole.shape[1:]))
        np.testing.assert_array_equal(row, whole[:1])
    baseline = Baseline.from_bytes(packed.file("baseline.json"))
    assert set(baseline.columns) == {"prediction", *(column.name for column in definition.columns)}
    assert definition.purpose in packed.file("card.md").decode()
    bill = msgspec.json.decode(packed.file("bom.json"))
    assert bill["metadata"]["component"]["name"] == definition.name


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff" * 8, b"\x08" + bytes(7) + b"{not js}", b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"],
    ids=["empty", "no end of the head", "no json", "no tensor", "no object"],
)
def test_a_sample_that_cannot_be_read_is_named_also_for_its_first_row(damage: bytes, tmp_path: Path) -> None:
    folder = next(iter(RELEASES.values()))(tmp_path / "one")
    definition = load_definition(folder)
    (folder / "calibration.safetensors").write_bytes(damage)
    with pytest.raises(BadSampleError, match=r"calibration\.safetensors|is missing"):
        read_first_row(folder, definition)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"golden": (images(40, 1)[0].astype(np.float64),)}, "golden: 'image' is float64, the definition says FP32"),
        ({"golden": (images(40, 1)[0][:, :2],)}, "golden: 'image' has shape"),
        ({"golden": (np.full((40, 3, 32, 32), np.nan, np.float32),)}, "not numbers"),
        ({"golden": ()}, "0 arrays for 1 inputs"),
        ({"calibration": (images(0, 1)[0],)}, "1 or more"),
        ({"golden_labels": np.zeros(3, np.float32)}, "40 rows with labels of shape"),
        ({"definition": text_definition()}, "the definition names 'input_ids'"),
    ],
)
def test_rows_that_do_not_fit_the_definition_are_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(BadReleaseError, match=said):
        assemble_tensors(parts(**changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: setattr(g.input[0], "name", "picture"), "inputs are 'picture', the definition names 'image'"),
        (lambda g: setattr(g.output[0], "name", "odds"), "outputs are 'odds', the definition names 'scores'"),
        (lambda g: g.output.append(helper.make_tensor_value_info("d", 1, None)), "outputs are 'scores', 'd'"),
        (
            lambda g: g.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 3, 32, 32])),
            "is UINT8, the definition says FP32",
        ),
        (
            lambda g: g.input[0].CopyFrom(helper.make_tensor_value_info("image", 1, ["n", 3, 64, 64])),
            r"has shape \[-1, 3, 64, 64\]",
        ),
        (
            lambda g: g.input[0].CopyFrom(helper.make_tensor_value_info("image", 8, ["n", 3, 32, 32])),
            "is of another type",
        ),
        (lambda g: g.output[0].CopyFrom(helper.make_tensor_value_info("scores", 1, None)), "no tensor of a known rank"),
    ],
)
def test_graph_whose_ends_are_not_the_definitions_is_refused(change: Any, said: str) -> None:
    with pytest.raises(BadReleaseError, match=said):
        assemble_tensors(parts(graph=changed_graph(change)))


def _through(graph: Any, *nodes: Any, final: str = "scores") -> None:
    """Let the scores pass some more nodes."""
    graph.node[-1].output[0] = "before"
    graph.node.extend(nodes)
    graph.output[0].name = final


def test_answers_that_are_no_numbers_are_refused() -> None:
    def broken(graph: Any) -> None:
        _through(
            graph,
            helper.make_node("Sub", ["before", "before"], ["none"]),
            helper.make_node("Div", ["none", "none"], ["scores"]),
        )

    with pytest.raises(BadReleaseError, match="output 'scores' gives values that are not numbers"):
        assemble_tensors(parts(graph=changed_graph(broken)))


def test_rows_that_depend_on_their_neighbours_are_refused() -> None:
    def joined(graph: Any) -> None:
        _through(
            graph,
            helper.make_node("ReduceMean", ["before"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["before", "mean"], ["scores"]),
        )

    with pytest.raises(BadReleaseError, match="rows are not independent"):
        assemble_tensors(parts(graph=changed_graph(joined)))


def test_answers_drawn_by_lot_are_refused() -> None:
    def drawn(graph: Any) -> None:
        _through(
            graph,
            helper.make_node("RandomNormalLike", ["before"], ["noise"]),
            helper.make_node("Add", ["before", "noise"], ["scores"]),
        )

    with pytest.raises(BadReleaseError, match="draws random numbers"):
        assemble_tensors(parts(graph=changed_graph(drawn)))


def test_output_of_another_shape_than_promised_is_refused() -> None:
    def fewer(graph: Any) -> None:
        graph.output[0].CopyFrom(helper.make_tensor_value_info("scores", 1, ["n", "m"]))
        _through(graph, helper.make_node("ReduceMean", ["before"], ["scores"], axes=[1], keepdims=1))

    with pytest.raises(BadReleaseError, match=r"shape \[16, 1\]|shape \[40, 1\]"):
        assemble_tensors(parts(graph=changed_graph(fewer)))


def test_golden_set_that_cannot_tell_good_from_bad_is_refused() -> None:
    def graph() -> bytes:
        node = helper.make_node("ReduceMax", ["window"], ["score"], axes=[1, 2], keepdims=0)
        ends = (
            [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["n", 24, 3])],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
        )
        model = helper.make_model(
            helper.make_graph([node], "g", *ends), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
        )
        data: bytes = model.SerializeToString()
        return data

    x = series(40, 1)[0]
    with pytest.raises(BadReleaseError, match="auc is unknown of these labels; both 0 and 1 must occur"):
        assemble_tensors(
            parts(
                definition=series_definition(),
                graph=graph(),
                calibration=(x,),
                golden=(x,),
                golden_labels=np.zeros(40, np.float32),
            )
        )
