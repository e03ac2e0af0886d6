"""Deltas lead exactly to their target, and a hostile one is refused in bounded memory."""

import hashlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.blobs.delta import (
    HEADER_BYTES,
    BadDeltaError,
    Header,
    Method,
    Named,
    decode,
    encode,
    read_header,
    regroup,
    ungroup,
)

TARGET = os.urandom(70_000) + bytes(5_000) + b"tail"
BASE = TARGET[:30_000] + os.urandom(100) + TARGET[30_100:] + b"longer"
WAYS = [(Method.XOR, BASE), (Method.XOR, None), (Method.PATCH, BASE), (Method.WHOLE, None)]


class Bytes:
    """A blob in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def named(data: bytes | None) -> Named | None:
    return None if data is None else Named(hashlib.sha256(data).hexdigest(), Bytes(data))


def made(method: Method, base: bytes | None, target: bytes) -> bytes:
    out, wanted = io.BytesIO(), named(target)
    assert wanted is not None
    encode(method, named(base), wanted, out)
    return out.getvalue()


def result(delta: bytes, base: bytes | None) -> bytes:
    file = io.BytesIO(delta)
    header = read_header(file)
    pieces, length = [], 0
    for piece in decode(file, header, None if base is None else Bytes(base)):
        length += len(piece)
        assert length <= header.target_bytes
        pieces.append(piece)
    return b"".join(pieces)


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=300), st.sampled_from([Method.XOR, Method.PATCH]))
def test_a_delta_leads_from_any_base_to_its_target(base: bytes, target: bytes, method: Method) -> None:
    if method is Method.PATCH and not base:
        return
    delta = made(method, base or None, target)
    assert result(delta, base or None) == target


@given(st.binary(max_size=300))
def test_regrouping_is_undone(data: bytes) -> None:
    assert ungroup(regroup(data)) == data


@pytest.mark.parametrize(("method", "base"), WAYS)
def test_a_delta_of_many_pieces(method: Method, base: bytes | None) -> None:
    target = TARGET * 30
    known = None if base is None else BASE * 29
    delta = made(method, known, target)
    assert result(delta, known) == target
    header = read_header(io.BytesIO(delta))
    assert (header.method, header.target, header.target_bytes) == (
        method,
        hashlib.sha256(target).hexdigest(),
        len(target),
    )


@pytest.mark.parametrize(("method", "base"), WAYS)
def test_a_delta_cut_short_or_gone_on_is_refused(method: Method, base: bytes | None) -> None:
    delta = made(method, base, TARGET)
    for cut in (0, 3, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 9, len(delta) // 2, len(delta) - 1):
        with pytest.raises(BadDeltaError):
            result(delta[:cut], base)
    with pytest.raises(BadDeltaError):
        result(delta + b"x", base)


@pytest.mark.parametrize(("method", "base"), WAYS)
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_damage_is_refused_or_harmless(method: Method, base: bytes | None, data: st.DataObject) -> None:
    """What comes out has the right length at most: its blocks are checked by who asked. Nothing else ever escapes."""
    delta = bytearray(made(method, base, TARGET))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(delta) - 1) | st.integers(0, HEADER_BYTES + 24))
        delta[min(at, len(delta) - 1)] = data.draw(st.integers(0, 255))
    with_base = bytes(delta)
    try:
        assert len(result(with_base, base)) == read_header(io.BytesIO(with_base)).target_bytes
    except BadDeltaError:
        return


@given(st.binary(max_size=400))
def test_noise_is_no_delta(noise: bytes) -> None:
    digest, head = "a" * 64, struct.pack(">QII", 0, 10, 300)
    for data in (noise, Header(Method.XOR, "", 0, digest, 50).encode() + noise):
        with pytest.raises(BadDeltaError):
            result(data, None)
    with pytest.raises(BadDeltaError):
        result(Header(Method.PATCH, digest, 10, digest, 50).encode() + head + noise, bytes(10))


@pytest.mark.parametrize(
    ("offset", "length", "packed", "says"),
    [(0, 100, 1, "reads 100"), (2**63, 8, 1, "reads 8"), (0, 2**31, 1, "reads"), (0, 10, 2**31, "a segment of")],
)
def test_a_segment_outside_its_base_or_size_is_refused(offset: int, length: int, packed: int, says: str) -> None:
    head = Header(Method.PATCH, "b" * 64, 10, "a" * 64, 50).encode()
    with pytest.raises(BadDeltaError, match=says):
        result(head + struct.pack(">QII", offset, length, packed) + b"x", bytes(10))


@pytest.mark.parametrize("target_bytes", [0, 2**40])
def test_a_target_of_no_size_or_beyond_all_is_refused(target_bytes: int) -> None:
    with pytest.raises(BadDeltaError, match="target of"):
        read_header(io.BytesIO(Header(Method.WHOLE, "", 0, "a" * 64, target_bytes).encode()))


def test_a_delta_for_another_base_is_refused_before_it_is_read() -> None:
    delta = made(Method.XOR, BASE, TARGET)
    for base in (None, BASE[:-1]):
        with pytest.raises(BadDeltaError, match="needs a base"):
            result(delta, base)


BOMBS = """
import io, sys, zstandard
from pathlib import Path
from landreeve.blobs.delta import BadDeltaError, Header, Method, decode, read_header
def peak_kib():  # resource counts what the parent held before the exec
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
kind = sys.argv[1]
zeros = bytes(1 << 24)
if kind == "window":
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    worker = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = worker.compress(zeros) + worker.flush()
else:
    worker = zstandard.ZstdCompressor(level=3).compressobj()
    packed = b"".join(worker.compress(zeros) for _ in range(64)) + worker.flush()
size = {"window": 1 << 24, "long": 1000, "true": 1 << 30}[kind]
file = io.BytesIO(Header(Method.XOR, "", 0, "a" * 64, size).encode() + packed)
header = read_header(file)
del zeros
before = peak_kib()
total, refused = 0, ""
try:
    for piece in decode(file, header, None):
        total += len(piece)
except BadDeltaError as error:
    refused = str(error)
print(total, peak_kib() - before, refused)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory as Linux tells it")
@pytest.mark.parametrize(
    ("kind", "total", "refusal"),
    [("window", 0, "memory"), ("long", 1000, "gives more than the 1000 bytes"), ("true", 1 << 30, "")],
)
def test_a_bomb_takes_no_more_memory_than_any_delta(kind: str, total: int, refusal: str) -> None:
    """A window of a gigabyte, a gigabyte for a kilobyte, and one that is honest: in a process of its own."""
    done = subprocess.run([sys.executable, "-c", BOMBS, kind], capture_output=True, text=True, check=True, timeout=120)
    given, kib, said = (done.stdout.strip() + " ").split(" ", 2)
    assert int(given) == total
    assert int(kib) < 32 * 1024
    assert refusal in said if refusal else not said.strip()


def test_a_compressed_segment_may_not_give_more_than_its_place() -> None:
    target = bytes(100)
    long = zstandard.ZstdCompressor(dict_data=None).compress(bytes(101))
    head = Header(Method.PATCH, "b" * 64, 10, hashlib.sha256(target).hexdigest(), len(target)).encode()
    with pytest.raises(BadDeltaError):
        result(head + struct.pack(">QII", 0, 10, len(long)) + long, bytes(10))
