"""What an ONNX file is made of, read from its bytes alone: no protobuf library, no copy, bounded work.

Every place that takes a release in uses it, also those that may not load the onnx package. It finds what must never
be loaded: tensors that name other files, operators of foreign domains, functions and training graphs, nesting that
exhausts a parser, and tensors that declare more elements than they carry. Whether a graph's ends fit a model is
judged later, by `landreeve_models.onnx_policy`.

Field numbers: onnx.proto3 (ONNX IR version 13); wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator

from landreeve.release.errors import BadReleaseError

MAX_GRAPH_BYTES = 512 * 1024 * 1024
MAX_NODES = 100_000
MAX_DEPTH = 8
MAX_FIELDS = 3_000_000
MAX_RANK = 16
# Domain → newest opset the bundled runtimes are known to execute.
ALLOWED_OPSETS = {"": 26, "ai.onnx": 26, "ai.onnx.ml": 5}
# Operators of other domains that a box itself puts into the graphs it makes; every bundled runtime has them built in.
ALLOWED_OPERATORS = {"com.microsoft": frozenset({"MatMulNBits"})}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Bits of an element by TensorProto.DataType; strings (8) are stored one by one.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
# TensorProto's typed fields: number → width of an entry in bytes, 0 for varints; and the wire type of one that is not
# packed. Parsers pass over a field of another wire type than its own, so it must not count here either.
_TYPED = {4: 4, 5: 0, 7: 0, 10: 8, 11: 0}
_UNPACKED = {0: _VARINT, 4: _FIXED32, 8: _FIXED64}
_MAX_TAG = 2**32 - 1
_HIGH = bytes(range(128, 256))
Field = tuple[int, int, int | memoryview]


def check_graph(data: bytes, name: str = "model.onnx") -> None:
    """Return when nothing in the file forbids loading it; `BadReleaseError` says what does."""
    if not 0 < len(data) <= MAX_GRAPH_BYTES:
        raise BadReleaseError(f"{name}: {len(data)} bytes, 1 to {MAX_GRAPH_BYTES} are accepted")
    _Scan(name).model(memoryview(data))


def check_domain(domain: str, version: int, name: str = "model.onnx") -> None:
    """`BadReleaseError` unless operators of that domain and opset are accepted."""
    newest = ALLOWED_OPSETS.get(domain)
    allowed = ", ".join(sorted(repr(one) for one in ALLOWED_OPSETS))
    if newest is None:
        raise BadReleaseError(f"{name}: operator domain {domain[:60]!r} is not accepted; accepted are {allowed}")
    if version > newest:
        raise BadReleaseError(f"{name}: opset {version} of {domain!r}; up to {newest} is accepted: export with it")


class _Scan:
    """One walk over one file; counts what it has seen, so that no file costs more than the limits."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._fields = 0
        self._nodes = 0

    def model(self, data: memoryview) -> None:
        graphs = 0
        for number, kind, value in self._read(data):
            if number == 7:
                graphs += 1
                self._graph(self._message(kind, value), 0)
            elif number == 8:
                self._opset(self._message(kind, value))
            elif number == 25:
                raise self._bad("has local functions; export with functions inlined")
            elif number == 20:
                raise self._bad("carries training graphs; export for inference")
        if graphs != 1 or not self._nodes:
            raise self._bad("no ONNX graph: it has no node")

    def _opset(self, data: memoryview) -> None:
        domain, version = "", 0
        for number, kind, value in self._read(data):
            if number == 1:
                domain = self._text(self._message(kind, value))
            elif number == 2 and kind == _VARINT and isinstance(value, int):
                version = value
        if domain not in ALLOWED_OPERATORS:
            check_domain(domain, version, self._name)

    def _graph(self, data: memoryview, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._bad(f"graphs nested deeper than {MAX_DEPTH}")
        for number, kind, value in self._read(data):
            if number == 1:
                self._node(self._message(kind, value), depth)
            elif number == 5:
                self._tensor(self._message(kind, value))
            elif number == 15:
                self._sparse(self._message(kind, value))

    def _node(self, data: memoryview, depth: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._bad(f"more than {MAX_NODES} nodes")
        operator = domain = ""
        for number, kind, value in self._read(data):
            if number == 4:
                operator = self._text(self._message(kind, value))
            elif number == 7:
                domain = self._text(self._message(kind, value))
            elif number == 5:
                self._attribute(self._message(kind, value), depth)
        if operator not in ALLOWED_OPERATORS.get(domain, ()):
            check_domain(domain, 0, self._name)

    def _attribute(self, data: memoryview, depth: int) -> None:
        once: set[int] = set()
        for number, kind, value in self._read(data):
            if number in {5, 6, 22}:
                if number in once:  # parsers would merge them
                    raise self._bad("no ONNX graph: an attribute holds two values")
                once.add(number)
            if number in {5, 10}:
                self._tensor(self._message(kind, value))
            elif number in {6, 11}:
                self._graph(self._message(kind, value), depth + 1)
            elif number in {22, 23}:
                self._sparse(self._message(kind, value))

    def _sparse(self, data: memoryview) -> None:
        once: set[int] = set()
        for number, kind, value in self._read(data):
            if number in {1, 2}:
                if number in once:
                    raise self._bad("no ONNX graph: a sparse tensor holds two values")
                once.add(number)
                self._tensor(self._message(kind, value))

    def _tensor(self, data: memoryview) -> None:
        elements, rank, datatype, held, raw, title = 1, 0, 0, 0, -1, ""
        for number, kind, value in self._read(data):
            if number == 1:
                for length in self._varints(kind, value):
                    elements, rank = elements * min(length, 2**40), rank + 1
                    if rank > MAX_RANK:
                        raise self._bad(f"a tensor of more than {MAX_RANK} dimensions")
            elif number == 2 and kind == _VARINT and isinstance(value, int):
                datatype = value
            elif number == 8:
                title = self._text(self._message(kind, value))
            elif number == 9:
                raw = len(self._message(kind, value))
            elif number in _TYPED:
                held += self._count(number, kind, value)
            elif number == 6:
                held += kind == _BYTES
            elif number == 13 or (number == 14 and value):
                raise self._bad(f"tensor {title[:60]!r} lies outside the file; store it inside")
        self._weigh(title, datatype, elements, held, raw)

    def _weigh(self, title: str, datatype: int, elements: int, held: int, raw: int) -> None:
        """A tensor must carry what it declares: a parser would make room for the declared number."""
        if datatype != 8 and datatype not in _BITS:
            raise self._bad(f"tensor {title[:60]!r} is of the unknown datatype {datatype}")
        if raw >= 0:
            fits = raw == (elements * _BITS.get(datatype, 8) + 7) // 8
        else:
            # Complex numbers take two entries; small integers may be packed several in one.
            fits = held >= (elements * _BITS.get(datatype, 32) + 31) // 32 // 2
        if not fits:
            raise self._bad(f"tensor {title[:60]!r} declares {elements} elements and does not carry them")

    def _count(self, number: int, kind: int, value: int | memoryview) -> int:
        width = _TYPED[number]
        if isinstance(value, int):
            return int(kind == _UNPACKED[width])
        if width:
            return len(value) // width
        return len(bytes(value).translate(None, _HIGH))  # one byte of each varint has its high bit clear

    def _varints(self, kind: int, value: int | memoryview) -> Iterator[int]:
        if isinstance(value, int):
            if kind == _VARINT:
                yield value
            return
        at = 0
        while at < len(value):
            number, at = self._varint(value, at)
            yield number

    def _message(self, kind: int, value: int | memoryview) -> memoryview:
        if isinstance(value, int):
            raise self._bad(f"no ONNX graph: a field of wire type {kind} where a message belongs")
        return value

    def _text(self, data: memoryview) -> str:
        return bytes(data[:256]).decode(errors="replace")

    def _read(self, data: memoryview) -> Iterator[Field]:
        """The fields of one message: number, wire type, value."""
        at, end = 0, len(data)
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise self._bad(f"more than {MAX_FIELDS} fields; store tensors packed or raw")
            tag, at = self._varint(data, at)
            if tag > _MAX_TAG:  # some parsers cut it to 32 bits and see another field than we do
                raise self._bad("no ONNX graph: a field number that does not exist")
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, at = self._varint(data, at)
                yield number, kind, value
                continue
            length, at = self._length(data, at, kind)
            if number == 0 or length > end - at:
                raise self._bad("no ONNX graph: it ends within a field")
            yield number, kind, data[at : at + length] if kind == _BYTES else 0
            at += length

    def _length(self, data: memoryview, at: int, kind: int) -> tuple[int, int]:
        if kind == _BYTES:
            return self._varint(data, at)
        if kind in {_FIXED64, _FIXED32}:
            return (8 if kind == _FIXED64 else 4), at
        raise self._bad(f"no ONNX graph: wire type {kind}")

    def _varint(self, data: memoryview, at: int) -> tuple[int, int]:
        value = shift = 0
        while at < len(data) and shift < 70:
            byte = data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise self._bad("no ONNX graph: a number that does not end")

    def _bad(self, text: str) -> BadReleaseError:
        return BadReleaseError(f"{self._name}: {text}")
