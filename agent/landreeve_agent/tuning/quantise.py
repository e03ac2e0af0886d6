"""The int8 graph of a release: static QDQ, calibrated on the release's own sample.

Only matrix products and convolutions are quantised: imputation and scaling stay in fp32, where NaN has a meaning.
Weights are signed, activations unsigned; on CPUs without VNNI the reduced range avoids saturation.
Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

QUANTISED_OPS = ("MatMul", "Gemm", "Conv")
_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


class NotQuantisedError(ValueError):
    """No int8 graph can be made; the text says why."""


class _Reader:
    """Feeds the calibration sample in batches, as onnxruntime's calibrator pulls it."""

    def __init__(self, names: Sequence[str], inputs: Sequence[NDArray[Any]], rows: int = 32) -> None:
        self._batches: Iterator[dict[str, NDArray[Any]]] = iter(
            [
                {name: x[i : i + rows] for name, x in zip(names, inputs, strict=True)}
                for i in range(0, len(inputs[0]), rows)
            ]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch, or None at the end."""
        return next(self._batches, None)


def quantise(source: Path, target: Path, sample: Sequence[NDArray[Any]], isa: frozenset[str]) -> None:
    """Write the int8 graph of ``source`` to ``target``, whole or not at all; `NotQuantisedError` when it cannot be."""
    try:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise NotQuantisedError(f"the quantiser needs the package {error.name or error}") from error
    model: Any = onnx.load_model_from_string(source.read_bytes())
    if not any(node.op_type in QUANTISED_OPS for node in model.graph.node):
        raise NotQuantisedError(f"the graph has none of {', '.join(QUANTISED_OPS)}: int8 has nothing to speed up")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".int8-") as folder:
        made = Path(folder) / target.name
        try:
            quantize_static(
                model,
                made,
                _Reader([node.name for node in model.graph.input], sample),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED_OPS),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=not isa & _VNNI,
            )
        except Exception as error:  # the quantiser raises whatever its many passes raise
            raise NotQuantisedError(f"{type(error).__name__}: {error}"[:300]) from error
        made.replace(target)
