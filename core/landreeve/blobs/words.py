"""Weights that were trained on: numbers as differences, sorted by how large a difference is expected. Pure.

A device that reads it says so (`landreeve.wire.transfers.WORDS`). The target is cut into chunks of at most 1 MiB, each
told in one of three ways, all in one zstd frame:

``RAW``    as it is.
``BYTES``  bytes minus those of the base, modulo 256: whole numbers of 8 bits.
``WORDS``  32-bit floats. Their bits are mapped to whole numbers in the order of the floats, so that a small step is a
           small difference whatever exponent or sign it crosses, and subtracted. How large a difference will be can be
           told in advance: the step of training depends on the place in the layer, given by a scale for each run of
           ``run`` words and one for each place in a period, and a step of given size is the more units in the last
           place the smaller the old weight is. Words are grouped by that expectation, in half octaves. Of each
           difference its sign, length and next two bits make one byte, which zstd packs; the bits below are noise and
           stay as they are.

Little-endian throughout. A chunk begins with `HEAD`: way, phase, period, bias, run, length, place in the base. Then,
for ``WORDS``: the bytes before the first and after the last whole word; int8 scales of runs and of places (half
octaves); the bytes of all differences, by group and then by place; and the low bits of all that have as many, the
shortest first.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 1024 * 1024
RAW, BYTES, WORDS = 0, 1, 2
HEAD = struct.Struct("<BBHhIIQ")
CLASSES = 256
# Below this a difference is its own code; above, each length has four, of which the last is 28 bits longer than that.
_EXACT, _LENGTHS = 8, 28
_WORD = 4
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]


class BadChunkError(ValueError):
    """A chunk that cannot be one; the text says why."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a chunk says of itself."""

    way: int
    phase: int
    period: int
    bias: int
    run: int
    length: int
    base_at: int

    def encode(self) -> bytes:
        fields = (self.way, self.phase, self.period, self.bias, self.run, self.length, self.base_at)
        return HEAD.pack(*fields)

    @property
    def words(self) -> int:
        return (self.length - self.phase) // _WORD


def read_chunk(read: Callable[[int], bytes], base: Callable[[int, int], bytes], left: int) -> bytes:
    """The next chunk of the target, of at most ``left`` bytes. ``read`` gives exactly so many bytes of the delta's
    frame or raises, ``base`` (place, length) up to so many of the base. `BadChunkError`."""
    head = Head(*HEAD.unpack(read(HEAD.size)))
    if not 0 < head.length <= min(left, CHUNK_BYTES):
        raise BadChunkError(f"a chunk of {head.length} bytes where {min(left, CHUNK_BYTES)} are left")
    if head.way == RAW:
        return read(head.length)
    if head.way not in {BYTES, WORDS}:
        raise BadChunkError(f"a chunk told in way {head.way}")
    old = np.frombuffer(base(head.base_at, head.length), np.uint8)
    if old.size != head.length:
        raise BadChunkError(f"{head.length} bytes of the base at {head.base_at}, where it has {old.size}")
    if head.way == BYTES:
        return bytes(old + np.frombuffer(read(head.length), np.uint8))
    return _words(read, head, old)


def _words(read: Callable[[int], bytes], head: Head, old: Bytes) -> bytes:
    count = head.words
    if head.phase >= _WORD or count < 1 or head.period > count or head.run > count:
        raise BadChunkError(f"{count} words from byte {head.phase}, period {head.period}, runs of {head.run}")
    edges = read(head.length - _WORD * count)
    before = ordered(old, head.phase, count)
    scales = scales_of(read, head)
    after = np.empty(count, np.int32)
    after[by_group(expected(before, scales, head.bias))] = _differences(read, count)
    after += before  # modulo 2^32, as it was subtracted
    out = np.empty(head.length, np.uint8)
    out[: head.phase] = np.frombuffer(edges[: head.phase], np.uint8)
    out[head.phase + _WORD * count :] = np.frombuffer(edges[head.phase :], np.uint8)
    out[head.phase : head.phase + _WORD * count] = flipped(after).view(np.uint8)
    return out.tobytes()


@dataclass(frozen=True, slots=True)
class Scales:
    """Half octaves by which each run of ``run`` words, and each place in a period, is above the chunk's; none where
    there are none."""

    run: int
    runs: NDArray[np.int8]
    places: NDArray[np.int8]

    def encode(self) -> bytes:
        return self.runs.tobytes() + self.places.tobytes()

    def of(self, count: int) -> Ints:
        """For each of so many words."""
        found = np.zeros(count, np.int32)
        if self.run:
            found += np.repeat(self.runs.astype(np.int32), self.run)[:count]
        if self.places.size:
            found += np.resize(self.places.astype(np.int32), count)
        return found


def scales_of(read: Callable[[int], bytes], head: Head) -> Scales:
    runs = -(-head.words // head.run) if head.run else 0
    return Scales(head.run, np.frombuffer(read(runs), np.int8), np.frombuffer(read(head.period), np.int8))


def ordered(data: Bytes, phase: int, count: int) -> Ints:
    """The words at that phase as whole numbers in the order of the floats they are.

    >>> floats = np.array([-2.0, -1.0, -0.0, 0.0, 1e-30, 3.0], "<f4")
    >>> bool((np.diff(ordered(floats.view(np.uint8), 0, 6).astype(np.int64)) > 0).all())
    True
    """
    return flipped(np.frombuffer(data.tobytes(), "<i4", count, phase))


def flipped(words: Ints) -> Ints:
    """Negative ones the other way round; twice is as it was."""
    return words ^ ((words >> 31) & np.int32(0x7FFFFFFF))


def expected(before: Ints, scales: Scales, bias: int) -> Bytes:
    """The class of each word: half octaves of the difference that is expected, in units in the last place."""
    classes = bias + scales.of(before.size) - 2 * exponents(before)
    clipped: Bytes = np.clip(classes, 0, CLASSES - 1).astype(np.uint8)
    return clipped


def exponents(words: Ints) -> Ints:
    """Of floats as `ordered` gives them, biased by 127.

    >>> exponents(ordered(np.array([-0.75, 0.75], "<f4").view(np.uint8), 0, 2)).tolist()
    [126, 126]
    """
    return (flipped(words) >> 23) & 0xFF


def by_group(classes: Bytes) -> NDArray[np.intp]:
    """The order in which words are told: by class, and in each from first to last."""
    return np.argsort(classes, kind="stable")


def told(differences: Ints) -> tuple[Bytes, list[bytes]]:
    """A byte for each difference, and the low bits of those that have as many, from the shortest to the longest."""
    sizes = differences ^ (differences >> 31)  # of a negative one, its complement: there is one zero, and no overflow
    lengths = np.frexp(sizes.astype(np.float64))[1].astype(np.int32)
    below = np.maximum(lengths - 3, 0)
    codes = np.where(lengths <= 3, sizes, _EXACT + 4 * (below - 1) + ((sizes >> below) & 3))
    low = [_low_of(sizes[below == bits], bits) for bits in range(1, _LENGTHS + 1)]
    return (2 * codes + (differences < 0)).astype(np.uint8), low


def _differences(read: Callable[[int], bytes], count: int) -> Ints:
    """What `told` told, in the order of the groups."""
    told_as = np.frombuffer(read(count), np.uint8)
    codes = (told_as >> 1).astype(np.int32)
    if codes.max() >= _EXACT + 4 * _LENGTHS:
        raise BadChunkError(f"a difference told as {told_as.max()}")
    below = np.where(codes < _EXACT, 0, (codes - _EXACT) // 4 + 1)
    sizes = np.where(codes < _EXACT, codes, (4 + (codes & 3)) << below)
    for bits in range(1, int(below.max()) + 1):
        which = np.flatnonzero(below == bits)
        sizes[which] |= _low(read, which.size, bits)
    return sizes ^ -(told_as & 1).astype(np.int32)


def _low(read: Callable[[int], bytes], size: int, bits: int) -> Ints:
    low = np.zeros(size, np.int32)
    for plane in range(bits // 8):
        low |= np.frombuffer(read(size), np.uint8).astype(np.int32) << np.int32(8 * plane)
    rest = bits % 8
    if rest:
        packed = np.frombuffer(read(-(-size * rest // 8)), np.uint8)
        single = np.unpackbits(packed, count=size * rest, bitorder="little").reshape(size, rest)
        for place in range(rest):
            low |= single[:, place].astype(np.int32) << np.int32(bits - rest + place)
    return low


def _low_of(values: Ints, bits: int) -> bytes:
    """What `_low` reads back: the low bits of each value."""
    parts = [((values >> np.int32(8 * plane)) & 0xFF).astype(np.uint8).tobytes() for plane in range(bits // 8)]
    rest = bits % 8
    if rest:
        places = np.arange(bits - rest, bits, dtype=np.int32)
        single = ((values[:, None] >> places) & 1).astype(np.uint8)
        parts.append(np.packbits(single.reshape(-1), bitorder="little").tobytes())
    return b"".join(parts)
