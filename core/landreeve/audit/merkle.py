"""The Merkle tree of RFC 6962 (https://www.rfc-editor.org/rfc/rfc6962#section-2.1), kept so that growing and proving
cost O(log n). Pure.

A tree is its *complete subtrees*: node ``(level, index)`` covers the leaves ``index·2^level`` up to the next. Such a
node never changes once it is full, so a store keeps each one beside the leaves and a root or a proof reads O(log n).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

EMPTY_ROOT = hashlib.sha256(b"").digest()
Node = tuple[int, int, bytes]


class Nodes(Protocol):
    """Complete subtrees by (level, index); level 0 holds the leaves."""

    def node(self, level: int, index: int) -> bytes: ...


class Memory:
    """A tree in memory, for verifiers and tests."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._nodes: dict[tuple[int, int], bytes] = {}
        self.size = 0
        for leaf in leaves:
            self.append(leaf)

    def node(self, level: int, index: int) -> bytes:
        return self._nodes[level, index]

    def append(self, leaf: bytes) -> None:
        for level, index, value in grown(self, self.size, leaf):
            self._nodes[level, index] = value
        self.size += 1

    def root(self) -> bytes:
        return root(self, self.size)


class Frontier:
    """The right edge alone: O(log n) memory, for who reads a whole log once. ``nodes`` are those of its leaves so far
    (`edge` of the stored tree, to go on from there)."""

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        self.size = size
        self._edge = list(edge)

    def append(self, leaf: bytes) -> list[Node]:
        """The complete subtrees that this leaf finishes, the leaf itself left out."""
        made: list[Node] = []
        value, index, level = leaf, self.size, 0
        while index % 2:
            value = node_hash(self._edge.pop(), value)
            index, level = index // 2, level + 1
            made.append((level, index, value))
        self._edge.append(value)
        self.size += 1
        return made

    def root(self) -> bytes:
        return _folded(self._edge)


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf: the zero prefix keeps a leaf from passing as a node."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def grown(nodes: Nodes, size: int, leaf: bytes) -> list[Node]:
    """What a tree of ``size`` leaves must keep when a leaf is appended: the leaf and each subtree it completes."""
    made: list[Node] = [(0, size, leaf)]
    level, index, value = 0, size, leaf
    while index % 2:
        value = node_hash(nodes.node(level, index - 1), value)
        level, index = level + 1, index // 2
        made.append((level, index, value))
    return made


def edge(nodes: Nodes, size: int) -> list[bytes]:
    """The complete subtrees that make up the first ``size`` leaves, largest first."""
    return [nodes.node(level, index) for level, index in _cover(0, size)]


def root(nodes: Nodes, size: int) -> bytes:
    """The tree hash of the first ``size`` leaves; 32 bytes."""
    return _folded(edge(nodes, size))


def inclusion_proof(nodes: Nodes, index: int, size: int) -> list[bytes]:
    """The audit path of leaf ``index`` in the tree of ``size`` leaves (section 2.1.1), nearest sibling first."""
    if not 0 <= index < size:
        raise IndexError(f"leaf {index} is not among {size}")
    start, stop, siblings = 0, size, list[bytes]()
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            siblings.append(_hash_of(nodes, middle, stop))
            stop = middle
        else:
            siblings.append(_hash_of(nodes, start, middle))
            start = middle
    return siblings[::-1]


def consistency_proof(nodes: Nodes, old: int, new: int) -> list[bytes]:
    """That the tree of ``new`` leaves begins with that of ``old`` (section 2.1.2); empty when they are the same or the
    old one is empty."""
    if not 0 <= old <= new:
        raise IndexError(f"a tree of {new} leaves does not begin with {old}")
    if old in (0, new):
        return []
    start, stop, whole, proof = 0, new, True, list[bytes]()
    while old != stop:
        middle = start + _split(stop - start)
        if old <= middle:
            proof.append(_hash_of(nodes, middle, stop))
            stop = middle
        else:
            proof.append(_hash_of(nodes, start, middle))
            start, whole = middle, False
    if not whole:
        proof.append(_hash_of(nodes, start, stop))
    return proof[::-1]


def includes(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes) -> bool:
    """Whether the path proves the leaf to be number ``index`` of a tree of that size and root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    value, place, last = leaf, index, size - 1
    for sibling in proof:
        if last == 0:
            return False
        if place % 2 or place == last:
            value = node_hash(sibling, value)
            while place % 2 == 0 and place:
                place, last = place // 2, last // 2
        else:
            value = node_hash(value, sibling)
        place, last = place // 2, last // 2
    return last == 0 and value == expected


def extends(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that the tree of ``new`` begins with that of ``old`` (RFC 9162, 2.1.4.2)."""
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    if not 0 < old < new or not proof:
        return False
    path = list(proof) if old & (old - 1) else [old_root, *proof]
    place, last = old - 1, new - 1
    while place % 2:
        place, last = place // 2, last // 2
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place % 2 or place == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while place % 2 == 0 and place:
                place, last = place // 2, last // 2
        else:
            second = node_hash(second, sibling)
        place, last = place // 2, last // 2
    return last == 0 and first == old_root and second == new_root


def _hash_of(nodes: Nodes, start: int, stop: int) -> bytes:
    return _folded([nodes.node(level, index) for level, index in _cover(start, stop)])


def _cover(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The complete subtrees of an aligned range, largest first: ``start`` is a multiple of the largest."""
    while start < stop:
        level = (stop - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def _folded(parts: Sequence[bytes]) -> bytes:
    """The hash over subtrees of falling size."""
    if not parts:
        return EMPTY_ROOT
    value = parts[-1]
    for part in reversed(parts[:-1]):
        value = node_hash(part, value)
    return value


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)
