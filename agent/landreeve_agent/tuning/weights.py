"""Weight-only int8 and int4: the stored factors of matrix products in blocks, each with its scale.

Activations stay as they are in the graph; the runtimes themselves quantise them at each run where that pays. The
operator is onnxruntime's ``com.microsoft.MatMulNBits``, which OpenVINO reads too. Source:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
DOMAIN = "com.microsoft"
_INT8_ACTIVATIONS = 4  # accuracy_level: the products may be summed from int8 activations


def blocks_of(weight: NDArray[np.float32], bits: int, block: int = BLOCK) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A factor (k, n) as unsigned integers (n, k / block, block · bits / 8), and its scales (n · k / block,).

    Symmetric about 2**(bits - 1); each block's largest magnitude is met exactly.

    >>> values, scales = blocks_of(np.array([[-8.0], [4.0]], np.float32), bits=4, block=2)
    >>> values.tolist(), scales.tolist()
    ([[[192]]], [1.0])
    """
    rows = weight.T.astype(np.float32)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(rows), -1, block)
    half = 1 << (bits - 1)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(-1, keepdims=True), -1)[..., 0]
    scales = largest / -half
    scales[scales == 0] = 1
    values: NDArray[Any] = np.clip(np.round(rows / scales[..., None]) + half, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values, scales.reshape(-1).astype(np.float32)


def pack_weights(model: Any, bits: int, kept: Collection[str]) -> int:
    """Replace the stored factors of an ONNX model's products in place; how many were replaced."""
    from onnx import helper, numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    packed: set[str] = set()
    count = 0
    for node in model.graph.node:
        tensor = stored.get(node.input[1]) if node.op_type == "MatMul" and node.name not in kept else None
        if tensor is None or len(tensor.dims) != 2 or tensor.data_type != 1 or tensor.dims[0] < BLOCK:
            continue
        names = [f"{tensor.name}.values", f"{tensor.name}.scales"]
        if tensor.name not in packed:
            arrays = blocks_of(numpy_helper.to_array(tensor), bits)
            model.graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True))
            packed.add(tensor.name)
        rows, columns = tensor.dims
        given = node.input[0]
        del node.input[:]
        node.input.extend([given, *names])
        node.op_type, node.domain = "MatMulNBits", DOMAIN
        shape = {"K": rows, "N": columns, "bits": bits, "block_size": BLOCK, "accuracy_level": _INT8_ACTIVATIONS}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in shape.items())
        count += 1
    used = {name for node in model.graph.node for name in node.input}
    for name in packed - used:
        model.graph.initializer.remove(stored[name])
    if count and DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return count
