"""The hub's side of `landreeve.blobs.words`: which way each chunk is told, where in the base it lies, by which scales.

What is chosen here only makes a delta smaller or larger, never wrong. Choices are made on estimates of bits, not by
packing each way: zstd at its highest level takes a second for two megabytes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import zstandard
from landreeve.blobs.delta import Header, Method, Named, Source
from landreeve.blobs.words import (
    BYTES,
    CHUNK_BYTES,
    CLASSES,
    RAW,
    WORDS,
    Head,
    Ints,
    Scales,
    by_group,
    expected,
    exponents,
    ordered,
    told,
)
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
_PROBE_BYTES = 4096
_MOST_SHIFT = 256
_LEAST_PERIOD, _MOST_PERIOD, _PEAKS = 4, 32_768, 12
_RUNS = (64, 128, 256, 512, 1024, 2048, 4096)
# What is not known of a size though its scale is, in octaves squared, and what a scale costs.
_NOISE, _SCALE_BITS = 0.5, 5.0
_LEAST_CHUNK = 4096
_LEAST_BLOCK = 16_384
"""A group of so many words is packed for itself."""


# The bytes of differences have no repeats to be found, and more effort packs them no better.
_LEVEL, _WINDOW_LOG = 3, 20


def write(base: Named, target: Named, out: BinaryIO) -> None:
    """Write the delta of the method ``words``; in constant memory, some 40 MB."""
    out.write(Header(Method.WORDS, base.digest, base.source.size, target.digest, target.source.size).encode())
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, window_log=_WINDOW_LOG)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for part in parts(base.source, target.source):
        out.write(packer.compress(part.data))
        if part.ends:
            out.write(packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    out.write(packer.flush())


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes for zstd; ``ends`` asks for a block of its own, since what follows looks otherwise."""

    data: bytes
    ends: bool = False


def parts(base: Source, target: Source) -> Iterator[Part]:
    """The whole target told in chunks, to be packed one after another."""
    at = shift = 0
    while at < target.size:
        data = target.read_at(at, CHUNK_BYTES)
        shift = _shift(base, data, at, shift)
        size = _cut(base, data, at, shift)
        yield from _chunk(base, data[:size], at, at + shift)
        at += size


def _chunk(base: Source, data: bytes, at: int, base_at: int) -> Iterator[Part]:
    new = np.frombuffer(data, np.uint8)
    old = np.frombuffer(base.read_at(base_at, len(data)) if base_at >= 0 else b"", np.uint8)
    if old.size != new.size:
        yield Part(Head(RAW, 0, 0, 0, 0, len(data), 0).encode() + data, ends=True)
        return
    phase, words_bits = min(((phase, _cost(new, old, phase)) for phase in range(4)), key=lambda found: found[1])
    bytes_bits = _entropy(new - old)
    if min(words_bits, bytes_bits) >= _entropy(new):
        yield Part(Head(RAW, 0, 0, 0, 0, len(data), 0).encode() + data, ends=True)
    elif bytes_bits <= words_bits or len(data) < _LEAST_CHUNK:
        yield Part(Head(BYTES, 0, 0, 0, 0, len(data), base_at).encode() + bytes(new - old), ends=True)
    else:
        yield from _told_in_words(new, old, phase, base_at)


def _told_in_words(new: Bytes, old: Bytes, phase: int, base_at: int) -> Iterator[Part]:
    count = (new.size - phase) // 4
    before, after = ordered(old, phase, count), ordered(new, phase, count)
    steps = after - before
    bias, scales = _scales(before, steps)
    classes = expected(before, scales, bias)
    order = by_group(classes)
    codes, low = told(steps[order])
    head = Head(WORDS, phase, scales.places.size, bias, scales.run, new.size, base_at)
    edges = new[:phase].tobytes() + new[phase + 4 * count :].tobytes()
    yield Part(head.encode() + edges + scales.encode(), ends=True)
    yield from _in_blocks(codes, np.bincount(classes, minlength=CLASSES))
    yield Part(b"".join(low), ends=True)


def _in_blocks(codes: Bytes, sizes: NDArray[np.int64]) -> Iterator[Part]:
    """Neighbouring groups together until there are enough for a block."""
    start = end = 0
    for size in sizes.tolist():
        end += size
        if end - start >= _LEAST_BLOCK or end == codes.size:
            yield Part(codes[start:end].tobytes(), ends=True)
            start = end


def _octaves(steps: Ints) -> Floats:
    return np.log2(np.abs(steps.astype(np.float64)) + 0.5)


def _scales(before: Ints, steps: Ints) -> tuple[int, Scales]:
    """The bias, and the scales by which the differences are told best: of runs, then of places in what is left."""
    sizes = _octaves(steps) + exponents(before)
    middle = float(np.median(sizes))
    bias = round(2 * middle) + CLASSES // 4
    left = np.clip(sizes - middle, -16, 16)
    run, runs, left = _best(left, [run for run in _RUNS if run <= steps.size], _by_run)
    _, places, _ = _best(left, _periods(left), _by_place)
    return min(max(bias, -(2**15)), 2**15 - 1), Scales(run, runs, places)


def _best(
    sizes: Floats, choices: Sequence[int], means: Callable[[Floats, int], Floats]
) -> tuple[int, NDArray[np.int8], Floats]:
    """The choice whose scales save most, its scales in half octaves, and what is left of the sizes; 0 for none."""
    spread = np.var(sizes) + _NOISE
    best: tuple[float, int, NDArray[np.int8], Floats] = (0.0, 0, np.zeros(0, np.int8), sizes)
    for choice in choices:
        scales = np.rint(2 * means(sizes, choice)).astype(np.int8)
        known = np.repeat(scales, choice)[: sizes.size] if means is _by_run else np.resize(scales, sizes.size)
        left = sizes - known / 2
        # A narrower spread saves about the half of its logarithm for each word; a scale costs some bits.
        gain = sizes.size * 0.5 * np.log2(spread / (np.var(left) + _NOISE)) - _SCALE_BITS * scales.size
        if gain > best[0]:
            best = (gain, choice, scales, left)
    return best[1:]


def _by_run(sizes: Floats, run: int) -> Floats:
    """The mean of each run."""
    starts = np.arange(0, sizes.size, run)
    return np.add.reduceat(sizes, starts) / np.diff(np.append(starts, sizes.size))


def _by_place(sizes: Floats, period: int) -> Floats:
    """The mean at each place of the period."""
    places = np.resize(np.arange(period), sizes.size)
    return np.bincount(places, sizes, period) / np.bincount(places, minlength=period)


def _periods(sizes: Floats) -> list[int]:
    """Distances at which sizes resemble each other most: kernels and widths of the layer, from their spectrum."""
    spectrum = np.fft.rfft(sizes - sizes.mean(), 2 * sizes.size)
    similar = np.fft.irfft(spectrum * spectrum.conj())[: min(_MOST_PERIOD, sizes.size // 4)]
    if similar.size < 2 * _LEAST_PERIOD:
        return []
    peaks = 1 + np.flatnonzero((similar[1:-1] > similar[:-2]) & (similar[1:-1] >= similar[2:]))
    peaks = peaks[peaks >= _LEAST_PERIOD]
    return [int(lag) for lag in peaks[np.argsort(-similar[peaks])][:_PEAKS]]


def _cost(new: Bytes, old: Bytes, phase: int) -> float:
    """About how many bits the words at that phase take."""
    count = (new.size - phase) // 4
    if count < 1:
        return float("inf")
    steps = ordered(new, phase, count) - ordered(old, phase, count)
    sizes = np.ceil(np.maximum(_octaves(steps), 0)).astype(np.int64)
    return _entropy(sizes.astype(np.uint8)) + float(sizes.sum()) + float((steps != 0).sum())


def _entropy(data: Bytes) -> float:
    counts = np.bincount(data.reshape(-1))
    counts = counts[counts > 0]
    return float((counts * np.log2(data.size / counts)).sum())


def _alike(base: Source, data: bytes, base_at: int) -> float:
    """The share of bytes that are, or nearly are, what the base has there."""
    old = np.frombuffer(base.read_at(base_at, len(data)), np.uint8) if base_at >= 0 else np.zeros(0, np.uint8)
    if not old.size:
        return 0.0
    near = (np.frombuffer(data, np.uint8)[: old.size] - old).view(np.int8)
    return float((np.abs(near.astype(np.int16)) <= 2).sum()) / len(data)


def _shift(base: Source, data: bytes, at: int, former: int) -> int:
    """By how much the base is ahead here: as before, unless some other place resembles more."""
    probe = data[:_PROBE_BYTES]
    best, alike = former, _alike(base, probe, at + former)
    if alike > 0.5:
        return best
    for shift in sorted(range(-_MOST_SHIFT, _MOST_SHIFT + 1), key=abs):
        now = _alike(base, probe, at + shift)
        if now > alike + 0.02:
            best, alike = shift, now
    return best


def _cut(base: Source, data: bytes, at: int, shift: int) -> int:
    """How many of the bytes lie at that shift: all, or those before the place where another begins."""
    tail = max(0, len(data) - _PROBE_BYTES)
    other = _shift(base, data[tail:], at + tail, shift)
    if other == shift or len(data) <= 2 * _PROBE_BYTES:
        return len(data)
    low, high = 0, tail
    while high - low > _PROBE_BYTES // 4:
        middle = (low + high) // 2
        probe = data[middle : middle + _PROBE_BYTES]
        if _alike(base, probe, at + middle + shift) >= _alike(base, probe, at + middle + other):
            low = middle
        else:
            high = middle
    return max(high, _LEAST_CHUNK)
