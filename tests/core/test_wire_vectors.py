"""Golden messages: what is in the field today must be read for ever, and what is wrong must be named."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from landreeve.wire import messages, transfers
from landreeve.wire.codec import (
    BLOCK_BYTES,
    COMPRESS_ABOVE_BYTES,
    MAX_MESSAGE_BYTES,
    READS,
    BadMessageError,
    Block,
    decode,
    decode_block,
    decode_missing,
    encode,
    encode_block,
    encode_missing,
    readable,
)
from landreeve.wire.ids import BadIdError
from landreeve.wire.messages import Ack, AnyBody, Event, Fact, LogLines, Want, Wire

VECTORS = Path(__file__).parents[1] / "vectors" / "wire"
VALID = sorted((VECTORS / "valid").glob("*.json"))
INVALID = sorted((VECTORS / "invalid").glob("*.json"))


def vector(path: Path) -> tuple[type[Wire], dict[str, Any]]:
    document = json.loads(path.read_text())
    kind = getattr(messages, document["kind"], None) or getattr(transfers, document["kind"])
    return kind, document


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_golden_message_is_read_and_written_back_unchanged(path: Path) -> None:
    kind, document = vector(path)
    expected = {k: v for k, v in document["message"].items() if k not in document.get("ignores", [])}
    message = decode(json.dumps(document["message"]).encode(), kind)
    written = msgspec.json.decode(encode_plain(message))
    assert shared(expected, written) == expected
    assert decode(encode(message), kind) == message


def shared(golden: Any, written: Any) -> Any:
    """What is written of the members that a golden message has: a younger contract may write more of them."""
    if isinstance(golden, dict) and isinstance(written, dict):
        return {name: shared(value, written.get(name)) for name, value in golden.items()}
    if isinstance(golden, list) and isinstance(written, list) and len(golden) == len(written):
        return [shared(*pair) for pair in zip(golden, written, strict=True)]
    return written


def test_who_has_not_said_that_it_reads_zstd_gets_plain_text() -> None:
    lines = LogLines(lines=tuple(f"line {n} of a long log" for n in range(200)))
    packed = encode(Fact(epoch=1, seq=1, at="2026-11-23T06:00:00Z", body=lines))
    assert readable(packed, READS) == packed
    plain = readable(packed, ())
    assert json.loads(plain)["body"]["lines"][199] == "line 199 of a long log"
    assert decode(plain, Fact) == decode(packed, Fact)


def test_text_no_broker_would_carry_plain_stays_compressed() -> None:
    packed = encode(Fact(epoch=1, seq=1, at="", body=LogLines(lines=("x" * 1_100_000,))))
    assert readable(packed, ()) == packed


def test_acknowledgement_says_what_the_hub_reads_only_when_it_is_told_to() -> None:
    assert b"reads" not in encode(Ack(epoch=1, seq=2))
    assert decode(encode(Ack(epoch=1, seq=2, reads=READS)), Ack).reads == READS


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_wrong_message_is_refused_and_the_field_is_named(path: Path) -> None:
    kind, document = vector(path)
    with pytest.raises(BadMessageError) as caught:
        decode(json.dumps(document["message"]).encode(), kind)
    assert document["error"] in str(caught.value)
    assert kind.__name__ in str(caught.value)


def encode_plain(message: Wire) -> bytes:
    return msgspec.json.encode(message)


def test_there_is_a_golden_message_for_every_kind_of_fact() -> None:
    bodies = {type(decode(json.dumps(vector(p)[1]["message"]).encode(), Fact).body) for p in VALID if "fact_" in p.stem}
    assert bodies == set(AnyBody.__args__)


def test_long_message_travels_compressed_and_a_short_one_does_not() -> None:
    short = Want(bytes=1, missing="01")
    long = Want(bytes=1, missing="0" * 2 * COMPRESS_ABOVE_BYTES)
    assert encode(short) == msgspec.json.encode(short)
    assert len(encode(long)) < COMPRESS_ABOVE_BYTES
    assert decode(encode(long), Want) == long


def test_compressed_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor().compress(b"0" * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(BadMessageError, match="must state a size up to"):
        decode(bomb, Want)


def test_compressed_message_that_hides_its_size_is_refused() -> None:
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(b"{}")
    with pytest.raises(BadMessageError):
        decode(hidden, Want)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    for prefix in (b"", b"\x28\xb5\x2f\xfd", b"{"):
        try:
            decode(prefix + data, Fact)
        except BadMessageError:
            continue


@given(
    st.builds(
        Fact,
        epoch=st.integers(0, 2**63),
        seq=st.integers(1, 2**63),
        at=st.text(),
        body=st.builds(Event, name=st.text(), subject=st.text(), cause=st.text(), sentence=st.text())
        | st.builds(LogLines, lines=st.lists(st.text(max_size=3000)).map(tuple)),
    )
)
def test_every_fact_survives_the_way(fact: Fact) -> None:
    assert decode(encode(fact), Fact) == fact


@given(st.integers(0, 2**32 - 1), st.binary(max_size=300))
def test_block_survives_the_way(index: int, data: bytes) -> None:
    block = Block("ab" * 32, index, data)
    assert decode_block(encode_block(block)) == block


@pytest.mark.parametrize(
    "frame",
    [b"", b"LRB1", b"LRB2" + bytes(40), bytes(100), encode_block(Block("ab" * 32, 0, b"")) + bytes(BLOCK_BYTES + 1)],
)
def test_frame_that_is_no_block_is_refused(frame: bytes) -> None:
    with pytest.raises(BadMessageError, match="block"):
        decode_block(frame)


def test_block_of_no_digest_cannot_be_made() -> None:
    with pytest.raises(BadIdError):
        encode_block(Block("../etc/passwd", 0, os.urandom(8)))


@given(st.frozensets(st.integers(0, 500)))
def test_bitmap_names_exactly_the_missing_blocks(missing: frozenset[int]) -> None:
    assert decode_missing(encode_missing(missing), 501) == missing


def test_bitmap_beyond_the_artifact_is_cut() -> None:
    assert decode_missing(encode_missing({0, 7, 900}), 8) == {0, 7}


def test_bitmap_that_is_no_hex_is_refused() -> None:
    with pytest.raises(BadMessageError, match=r"want\.missing"):
        decode_missing("zz", 8)
