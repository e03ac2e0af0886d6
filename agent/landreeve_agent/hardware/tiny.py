"""The tiny model that proves a device, as numbers: its weights, its inputs, and its answer computed by numpy alone.

A convolution, a rectifier, a mean and a matrix product: what every device of ours can do, in static shapes, because
NPUs take no others. The weights are waves, so that they need no file and no row or channel equals another.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

INPUT, OUTPUT = "x", "y"
SHAPE = (1, 3, 16, 16)
_CHANNELS, _CLASSES, _KERNEL = 8, 4, 3


def kernels() -> Array:
    """The convolution's weights, (8, 3, 3, 3)."""
    return _wave((_CHANNELS, SHAPE[1], _KERNEL, _KERNEL), 0.7)


def matrix() -> Array:
    """The last layer's weights, (8, 4)."""
    return _wave((_CHANNELS, _CLASSES), 1.3)


def example(seed: int) -> Array:
    """An input, (1, 3, 16, 16); another one for each seed, different enough that no answer fits two of them."""
    return _wave(SHAPE, 0.37 + 0.11 * seed) * np.float32(1 + seed)


def answer(x: Array) -> Array:
    """What the model must answer to one input, (1, 4), in double precision."""
    padded = np.pad(x.astype(np.float64)[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_KERNEL, _KERNEL), axis=(1, 2))
    convolved = np.einsum("chwij,ocij->ohw", windows, kernels().astype(np.float64))
    means = np.maximum(convolved, 0).mean(axis=(1, 2))
    return np.asarray((means @ matrix().astype(np.float64))[None], np.float32)


def difference(got: Array, wanted: Array) -> float:
    """The largest deviation, as a share of the largest wanted value; infinite when shape or kind of number is wrong.

    >>> difference(np.float32([[1, 2]]), np.float32([[1, 2.02]])) < 0.02
    True
    """
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got.astype(np.float64) - wanted).max() / max(1e-9, float(np.abs(wanted).max())))


def _wave(shape: tuple[int, ...], step: float) -> Array:
    count = int(np.prod(shape))
    return np.sin(np.arange(1, count + 1, dtype=np.float64) * step).reshape(shape).astype(np.float32)
