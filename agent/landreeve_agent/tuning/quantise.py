"""Makes the graphs of reduced precision of one release, each by its recipe.

Only matrix products and convolutions are quantised: imputation and scaling stay in fp32, where NaN has a meaning.
Static int8 has signed weights by channel and unsigned activations; on CPUs without VNNI the reduced range avoids
saturation. Sources: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html,
https://github.com/openvinotoolkit/nncf
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from landreeve.blobs.files import PLAIN, Files
from landreeve.release.manifest import Signature
from landreeve_models.onnx_policy import check
from numpy.typing import NDArray

from landreeve_agent.tuning.calibrate import ranges_of
from landreeve_agent.tuning.graph import QUANTISED_OPS, GraphFacts, facts_of, quantisable
from landreeve_agent.tuning.recipes import Recipe
from landreeve_agent.tuning.surgery import restore
from landreeve_agent.tuning.weights import pack_weights

NNCF_ROWS = 48
MOST_UNITS = 128  # a recipe is a word of 48 characters at most
_OPSET = 17
_MIN_OPSET = 13  # scales by channel
_WRITTEN_BY_LIBRARY = ("dynamic", "stock-qdq", "stock-dynamic")
_OF_FOLDED = ("qdq", "stock-qdq")
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


class NotQuantisedError(ValueError):
    """No graph can be made by this recipe; the text says why."""


def nncf_missing() -> str:
    """Why NNCF cannot be used, or the empty text."""
    if find_spec("nncf") is None:
        return "nncf is not installed (extra 'tune')"
    return ""


class Kitchen:
    """Follows recipes for one release: its graph in ``source``, the made ones in ``folder``, both read by ``files``;
    what libraries write lies in ``raw`` for a moment, by default beside.

    ``sample`` is the calibration sample, an array for each input; ``threads`` what calibration may use; ``signature``
    the release's, whose ends each made graph must keep.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        sample: Sequence[NDArray[Any]],
        *,
        isa: frozenset[str],
        threads: int,
        signature: Signature | None = None,
        files: Files = PLAIN,
        raw: Path | None = None,
    ) -> None:
        self._source = source
        self._files = files
        self._raw = raw or folder
        self._nowhere = raw is None and files is not PLAIN
        self._folder = folder
        self._sample = sample
        self._reduced = not isa & _VNNI
        self._threads = threads
        self._signature = signature
        self._ranges: dict[str, Any] | None = None

    @cached_property
    def model(self) -> Any:
        """The release's graph as an ONNX model, every node named."""
        return _named(self._read())

    @cached_property
    def folded(self) -> Any:
        """The same with constants folded and batch norms merged into convolutions: what static int8 needs. OpenVINO
        does that itself, and was slower on a graph that others had folded."""
        return _named(_folded(self._read(), self._raw))

    @cached_property
    def facts(self) -> GraphFacts:
        """What the graph is made of."""
        return facts_of(self.model)

    def units(self, kind: str) -> list[list[str]]:
        """What the mask of a recipe of this kind counts: the nodes it may quantise, neighbours together when they are
        more than `MOST_UNITS`."""
        nodes = quantisable(self.folded if kind in _OF_FOLDED else self.model)
        size = -(-len(nodes) // MOST_UNITS) or 1
        return [nodes[first : first + size] for first in range(0, len(nodes), size)]

    def make(self, recipe: Recipe) -> Path:
        """The file of the graph, made unless it is there already; `NotQuantisedError` when it cannot be."""
        if self._nowhere:
            raise NotQuantisedError("this site is sealed, and quantisers write plain files: set at_rest.scratch")
        target = self._folder / recipe.graph
        if target.exists():
            return target
        following: dict[str, Callable[[Recipe, Path], None]] = {
            "qdq": self._static,
            "nncf": self._nncf,
            "dynamic": self._dynamic,
            "weights8": self._weights,
            "weights4": self._weights,
            "stock-qdq": self._stock_static,
            "stock-dynamic": self._stock_dynamic,
        }
        made = self._raw / f".{target.name}"
        try:
            with _on_cores(self._threads):
                following[recipe.kind](recipe, made)
            if recipe.kind in _WRITTEN_BY_LIBRARY:
                _save(_parsed(made.read_bytes()), made)
            graph = made.read_bytes()
            check(graph, signature=self._signature)  # the worker would refuse it, and only then
            self._files.write(target, graph)
        except NotQuantisedError:
            raise
        except ImportError as error:
            raise NotQuantisedError(f"the quantiser needs the package {error.name or error}") from error
        except Exception as error:  # the quantisers raise whatever their many passes raise
            raise NotQuantisedError(f"{type(error).__name__}: {error}"[:300]) from error
        finally:
            made.unlink(missing_ok=True)
        return target

    def _read(self) -> Any:
        return _modern(_parsed(self._files.read(self._source)))

    def _kept(self, recipe: Recipe) -> list[str]:
        units = self.units(recipe.kind)
        if recipe.keep and max(recipe.keep) >= len(units):
            raise NotQuantisedError(f"it keeps unit {max(recipe.keep)}, the graph has {len(units)}: another graph's")
        return [name for index in sorted(recipe.keep) for name in units[index]]

    def _static(self, recipe: Recipe, target: Path) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        if self._ranges is None:
            self._ranges = ranges_of(self.folded, self._sample, self._threads)
        quantiser = QDQQuantizer(
            _copy(self.folded),
            per_channel=True,
            reduce_range=self._reduced,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, self._ranges),
            nodes_to_quantize=[],
            nodes_to_exclude=self._kept(recipe),
            op_types_to_quantize=list(QUANTISED_OPS),
            extra_options={},
        )
        quantiser.quantize_model()
        _save(quantiser.model.model, target)

    def _nncf(self, recipe: Recipe, target: Path) -> None:
        if missing := nncf_missing():
            raise NotQuantisedError(missing)
        if not recipe.keep:
            _save(_by_nncf(_copy(self.model), self._sample, transformer=not self.facts.convolutions), target)
            return
        whole = _parsed(self._files.read(self.make(Recipe("nncf"))))
        restore(whole, self.model, self._kept(recipe))
        _save(whole, target)

    def _dynamic(self, recipe: Recipe, target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            _copy(self.model),
            target,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=self._reduced,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=self._kept(recipe),
        )

    def _weights(self, recipe: Recipe, target: Path) -> None:
        model = _copy(self.model)
        if not pack_weights(model, 4 if recipe.kind == "weights4" else 8, self._kept(recipe)):
            raise NotQuantisedError("no matrix product has a stored factor large enough")
        _save(model, target)

    def _stock_static(self, recipe: Recipe, target: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        inputs, sample = [value.name for value in self.folded.graph.input], self._sample

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            rows = iter(range(len(sample[0])))

            def get_next(self) -> dict[str, Any] | None:
                row = next(self.rows, None)
                if row is None:
                    return None
                return {name: array[row : row + 1] for name, array in zip(inputs, sample, strict=True)}

        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(_copy(self.folded), target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **types)

    def _stock_dynamic(self, recipe: Recipe, target: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(_copy(self.model), target)


@contextlib.contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """This thread, and those it starts, on so many cores at most: a quantiser takes all it sees, and what serves
    needs one."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    if len(before) <= count:
        yield
        return
    os.sched_setaffinity(0, sorted(before)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _parsed(graph: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(graph)


def _modern(model: Any) -> Any:
    """The model with operators new enough to be quantised by channel, where it can be converted."""
    import onnx

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), _OPSET)
    if opset < _MIN_OPSET:
        with contextlib.suppress(Exception):  # the converter lacks some operators: then as it is, perhaps refused later
            return onnx.version_converter.convert_version(model, _OPSET)
    return model


def _folded(model: Any, folder: Path) -> Any:
    """The graph after onnxruntime's own simplest passes, with the shapes that can be inferred."""
    import onnx
    import onnxruntime as ort

    folded = folder / ".folded.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folded)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        return onnx.shape_inference.infer_shapes(_parsed(folded.read_bytes()))
    finally:
        folded.unlink(missing_ok=True)


def _named(model: Any) -> Any:
    """The model, every node with a name of its own."""
    names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in names:
            node.name = f"{node.op_type}.{index}"
        names.add(node.name)
    return model


def _by_nncf(model: Any, sample: Sequence[NDArray[Any]], *, transformer: bool) -> Any:
    # The package reports usage unless its telemetry cannot be imported (see `session.import_openvino`).
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf

    nncf.set_log_level(logging.ERROR)
    names = [value.name for value in model.graph.input]
    rows = min(len(sample[0]), NNCF_ROWS)
    items = [{name: a[i : i + 1] for name, a in zip(names, sample, strict=True)} for i in range(rows)]
    options = {"model_type": nncf.ModelType.TRANSFORMER} if transformer else {}
    return nncf.quantize(model, nncf.Dataset(items), subset_size=rows, **options)


def _copy(model: Any) -> Any:
    twin = type(model)()
    twin.CopyFrom(model)
    return twin


def _save(model: Any, target: Path) -> None:
    """Write the model; the runtime that folded it names operator sets that no node is of, and a box refuses those."""
    used = {node.domain for node in model.graph.node}
    for opset in [opset for opset in model.opset_import if opset.domain not in used]:
        model.opset_import.remove(opset)
    target.write_bytes(model.SerializeToString())
