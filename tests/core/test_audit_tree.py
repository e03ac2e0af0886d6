"""The tree, its proofs, canonical JSON and signed notes: against their standards, and against forgers."""

import json
import random
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.audit import merkle, note
from landreeve.audit.canonical import canonical, plain
from landreeve.audit.note import BadNoteError, Checkpoint, Note

# Leaves and roots of the Certificate Transparency reference implementation.
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def tree(size: int, salt: int = 0) -> merkle.Memory:
    return merkle.Memory(merkle.leaf_hash(bytes([salt]) + n.to_bytes(4, "big")) for n in range(size))


def test_roots_are_those_of_rfc_6962() -> None:
    for size, root in ROOTS.items():
        assert merkle.Memory(merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in LEAVES[:size]).root().hex() == root


@given(st.integers(1, 70), st.integers(0, 69), st.integers(0, 69))
@settings(deadline=None)
def test_inclusion_is_proven_for_the_leaf_alone(size: int, index: int, other: int) -> None:
    index, other, grown = index % size, other % size, tree(size)
    proof = merkle.inclusion_proof(grown, index, size)
    assert merkle.includes(grown.node(0, index), index, size, proof, grown.root())
    assert other == index or not merkle.includes(grown.node(0, other), index, size, proof, grown.root())
    assert len(proof) <= max(1, (size - 1).bit_length())


@given(st.integers(0, 70), st.integers(0, 70))
@settings(deadline=None)
def test_growth_is_proven_and_a_rewritten_past_is_not(a: int, b: int) -> None:
    old, new = sorted((a, b))
    grown, forged = tree(new), tree(new, salt=1)
    proof = merkle.consistency_proof(grown, old, new)
    before = merkle.root(grown, old)
    assert merkle.extends(old, before, new, grown.root(), proof)
    if old:
        false = merkle.consistency_proof(forged, old, new)
        assert not merkle.extends(old, before, new, forged.root(), false)
        assert not merkle.extends(old, before, new, forged.root(), proof)
    if proof:
        assert not merkle.extends(old, before, new, grown.root(), proof[:-1])
        assert not merkle.extends(old, before, new, grown.root(), [*proof, proof[0]])


def test_a_tree_read_once_makes_the_nodes_that_a_kept_one_has() -> None:
    kept, walk, made = tree(37), merkle.Frontier(), []
    for index in range(37):
        made += walk.append(kept.node(0, index))
    assert all(kept.node(level, index) == value for level, index, value in made)
    assert len(made) == 37 - (37).bit_count()
    assert walk.root() == kept.root()
    again = merkle.Frontier(20, merkle.edge(kept, 20))
    for index in range(20, 37):
        again.append(kept.node(0, index))
    assert again.root() == kept.root()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # RFC 8785, appendix B: the number's bits and its text.
        ("0000000000000001", "5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555554", "333333333.33333325"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("8000000000000000", "0"),
    ],
)
def test_numbers_are_written_as_rfc_8785_says(value: str, text: str) -> None:
    assert canonical(struct.unpack(">d", bytes.fromhex(value))[0]).decode() == text


def test_members_are_sorted_and_strings_escaped_as_rfc_8785_says() -> None:
    """The example of section 3.2.3: sorting is by UTF-16 code units."""
    value = {
        "\u20ac": "Euro",
        "\r": "CR",
        "\ufb33": "Dalet",
        "1": "One",
        "\U0001f600": "Smile",
        "\u0080": "C",
        "\u00f6": "o",
    }
    order = list(json.loads(canonical(value)))
    assert order == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert canonical('\u0007\n"\\/é').decode() == '"\\u0007\\n\\"\\\\/é"'


LEAF = st.none() | st.booleans() | st.floats() | st.integers() | st.text()


@given(st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@settings(deadline=None)
def test_whatever_is_recorded_has_one_form_that_reads_back_to_itself(value: object) -> None:
    text = canonical(plain(value))
    assert canonical(json.loads(text)) == text


def signed(checkpoint: Checkpoint, key: Ed25519PrivateKey = KEY) -> Note:
    return Note(checkpoint.text(), (note.sign(checkpoint.text(), checkpoint.origin, key),))


def test_a_note_reads_back_and_holds_for_its_key_alone() -> None:
    checkpoint = Checkpoint("landreeve-hub/demo", 5, tree(5).root())
    whole = signed(checkpoint).whole()
    read = note.parse_note(whole)
    assert note.parse_checkpoint(read.text) == checkpoint
    key = note.parse_key(note.log_key("landreeve-hub/demo", KEY).text())
    assert note.signed_by(read, key)
    other = Ed25519PrivateKey.generate()
    assert not note.signed_by(read, note.log_key("landreeve-hub/demo", other))
    assert not note.signed_by(Note(read.text.replace("\n5\n", "\n6\n"), read.signatures), key)
    assert not note.signed_by(Note(read.text, (note.sign(read.text, "landreeve-hub/demo", other),)), key)


def test_a_cosignature_binds_its_time_and_is_no_signature_of_a_log() -> None:
    text = Checkpoint("log", 1, bytes(32)).text()
    line = note.cosign(text, "witness", KEY, 1_700_000_000)
    key = note.witness_key("witness", KEY)
    assert note.is_valid(text, note.parse_line(line.line()), key)
    later = note.Signature(line.name, line.key_id, (1_700_000_001).to_bytes(8, "big") + line.value[8:])
    assert not note.is_valid(text, later, key)
    assert not note.is_valid(text, line, note.log_key("witness", KEY))


@pytest.mark.parametrize(
    "text", ["", "a\n\nb\n", "log\n1\nAAAA\n\n— log AAAA\n", "log\n-1\n\n", "x" * 70_000 + "\n\n— a b\n"]
)
def test_what_is_no_note_is_said_so(text: str) -> None:
    with pytest.raises(BadNoteError):
        note.parse_checkpoint(note.parse_note(text).text)


def test_garbled_notes_never_pass() -> None:
    draw, whole = random.Random(7), signed(Checkpoint("log", 9, tree(9).root())).whole().encode()
    key = note.log_key("log", KEY)
    for _ in range(400):
        at = draw.randrange(len(whole))
        garbled = whole[:at] + bytes([draw.randrange(256)]) + whole[at + 1 :]
        try:
            read = note.parse_note(garbled.decode("utf-8", "replace"))
        except BadNoteError:
            continue
        # Only what does not touch the text or the signature's bits may still hold (base64's unused bits are refused).
        assert garbled == whole or not note.signed_by(read, key)
