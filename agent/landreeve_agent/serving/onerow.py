"""One row of a tabular model, decoded by types that were made for that model: the common request, at a third of the
time of the full way.

msgspec checks names, datatypes, shapes and bounds of JSON while it parses, and the layout of binary columns is looked
up by their datatypes and sizes. Whatever does not fit exactly is None here: `landreeve_agent.serving.oip` then reads
the request the full way and says what is wrong, so refusals have one source. What is taken here is what it would take.
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union

import msgspec
from landreeve_models.definition import check_value

from landreeve_agent.serving.columns import CODES, MATRIX, Input, Raw
from landreeve_agent.serving.messages import Parameters, WantedOutput

MOST_COLUMNS = 256  # each takes two types and a few kilobytes
MOST_LAYOUTS = 256
_NAN = float("nan")
_INT64 = 2**63
_NUMBERS = {name: code for name, code in CODES.items() if name != "BOOL"}
_ONES = Annotated[tuple[Literal[1], ...], msgspec.Meta(min_length=1, max_length=2)]

# A message, its row as it is captured, and the row as the graph takes it.
Found = tuple[Any, Any, Sequence[float]]


class _Size(msgspec.Struct, gc=False):
    binary_data_size: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Layout:
    """Where the columns stand in the bytes of a binary request: ``places`` are their elements' in ``form``, ``texts``
    the columns that are texts with the place of their length and that length, ``numbers`` those with bounds."""

    __slots__ = ("form", "missing", "numbers", "places", "texts")

    def __init__(
        self, form: struct.Struct, places: list[int], columns: Sequence[Input], lengths: dict[int, int]
    ) -> None:
        self.form = form
        self.missing = -1 in places
        self.places = places
        self.texts = [(at, places[at] - 1, length) for at, length in lengths.items()]
        self.numbers = [
            (at, column.low, column.high) for at, column in enumerate(columns) if at not in lengths and places[at] >= 0
        ]


class OneRow:
    """Reads a request of one row by the columns of one version. Not safe for threads."""

    def __init__(self, columns: Sequence[Input]) -> None:
        """`ValueError` when no types can be made for these columns."""
        if not 2 <= len(columns) <= MOST_COLUMNS:
            raise ValueError(f"{len(columns)} columns; 2 to {MOST_COLUMNS} have types of their own")
        self._columns = tuple(columns)
        names = {f"c{at}": column.name for at, column in enumerate(columns)}
        self._row: Any = msgspec.defstruct("Row", [(place, Any) for place in names], rename=names, gc=False)
        json_types = [_json_type(at, column) for at, column in enumerate(columns)]
        binary_types = [_binary_type(at, column) for at, column in enumerate(columns)]
        self._at = {kind: at for kinds in (json_types, binary_types) for at, kind in enumerate(kinds)}
        self._kinds = {column.name: kind for column, kind in zip(columns, binary_types, strict=True)}
        self._matrix: Any = None
        if all(column.name != MATRIX for column in columns):
            self._matrix = _matrix_type(len(columns))
            binary_types.append(self._matrix)
        self._json: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_request_type(json_types))
        self._binary: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_request_type(binary_types))
        self._forms = {name: struct.Struct(f"<{len(columns)}{code}") for name, code in _NUMBERS.items()}
        self._orders: dict[tuple[Any, ...], list[int]] = {}
        self._layouts: dict[tuple[Any, ...], _Layout] = {}
        self._bounds = [(at, c.low, c.high) for at, c in enumerate(columns) if c.column.kind == "number"]
        self._ranks = [(at, c.ranks) for at, c in enumerate(columns) if c.column.kind != "number"]
        self._texts = [(at, dict(enumerate(c.texts))) for at, c in enumerate(columns) if c.column.kind != "number"]
        self._optional = [at for at, c in enumerate(columns) if not c.column.required]

    # --- JSON

    def json(self, body: Raw) -> Found | None:
        """The row in a body of JSON alone, when it is the usual kind."""
        try:
            message = self._json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        inputs = message.inputs
        kinds = tuple(map(type, inputs))
        order = self._orders.get(kinds)
        if order is None:
            order = self._learn_order(kinds)
            if order is None:
                return None
        values = [tensor.data[0] for tensor in inputs]
        if order:
            values.append(None)
            values = [values[place] for place in order]
        return self._found(message, values)

    def _learn_order(self, kinds: tuple[Any, ...]) -> list[int] | None:
        """Where each column stands among inputs of these types, -1 for one that is absent and may be; no places when
        they stand in the model's own order."""
        places = self._places(kinds)
        if places is None:
            return None
        if places == list(range(len(places))):
            places = []
        if len(self._orders) >= MOST_LAYOUTS:  # bounded: strangers may send any number of different ones
            self._orders.clear()
        self._orders[kinds] = places
        return places

    def _places(self, kinds: tuple[Any, ...]) -> list[int] | None:
        places = [-1] * len(self._columns)
        for place, kind in enumerate(kinds):
            at = self._at.get(kind)
            if at is None or places[at] >= 0:  # a matrix among columns, or a column twice
                return None
            places[at] = place
        if any(place < 0 and column.column.required for place, column in zip(places, self._columns, strict=True)):
            return None
        return places

    def _found(self, message: Any, values: list[Any]) -> Found | None:
        """The row of numbers within their bounds, and texts that may still be unknown."""
        features = values.copy()
        for at, ranks in self._ranks:
            text = values[at]
            rank = ranks.get(text)
            if rank is None:
                if text is not None and check_value(self._columns[at].column, text):
                    return None
                rank = _NAN  # a text that training never saw
            features[at] = rank
        for at in self._optional:
            if values[at] is None:
                features[at] = _NAN
        return message, self._row(*values), features

    # --- binary

    def binary(self, head: Raw, tail: Raw) -> Found | None:
        """The row in a message and its binary tensors, when it is the usual kind."""
        try:
            message = self._binary.decode(head)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        inputs = message.inputs
        if len(inputs) == 1 and type(inputs[0]) is self._matrix:
            return self._from_matrix(message, inputs[0], tail)
        kinds = tuple(map(type, inputs))
        datatypes = tuple([tensor.datatype for tensor in inputs])
        sizes = tuple([tensor.parameters.binary_data_size for tensor in inputs])
        return self._from_columns(message, kinds, datatypes, sizes, tail)

    def raw(self, names: Sequence[str], datatypes: Sequence[str], raws: Sequence[bytes]) -> Found | None:
        """The row of one-element columns that came by name with their bytes, as over gRPC; its message is None."""
        kinds = tuple([self._kinds.get(name) for name in names])
        return self._from_columns(None, kinds, tuple(datatypes), tuple(map(len, raws)), b"".join(raws))

    def _learn_layout(self, kinds: tuple[Any, ...], datatypes: Sequence[str], sizes: Sequence[int]) -> _Layout | None:
        order = self._places(kinds)
        if order is None:
            return None
        starts: list[int] = []
        codes = ""
        count = 0
        for datatype, size in zip(datatypes, sizes, strict=True):
            text = datatype == "BYTES"
            if size < 4 if text else datatype not in _NUMBERS:
                return None
            codes += f"I{size - 4}s" if text else _NUMBERS[datatype]
            if not text and struct.calcsize("<" + _NUMBERS[datatype]) != size:
                return None
            starts.append(count + text)  # of a text, its length stands before it
            count += 1 + text
        if any(
            place >= 0 and (datatypes[place] == "BYTES") == (column.column.kind == "number")
            for place, column in zip(order, self._columns, strict=True)
        ):
            return None
        lengths = {at: sizes[order[at]] - 4 for at, _ in self._ranks if order[at] >= 0}
        places = [starts[place] if place >= 0 else -1 for place in order]
        layout = _Layout(struct.Struct("<" + codes), places, self._columns, lengths)
        if len(self._layouts) >= MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[kinds, tuple(datatypes), tuple(sizes)] = layout
        return layout

    def _from_columns(
        self, message: Any, kinds: tuple[Any, ...], datatypes: tuple[str, ...], sizes: tuple[int, ...], tail: Raw
    ) -> Found | None:
        layout = self._layouts.get((kinds, datatypes, sizes))
        if layout is None:
            layout = self._learn_layout(kinds, datatypes, sizes)
        if layout is None or layout.form.size != len(tail):
            return None
        raw = layout.form.unpack(tail)
        if layout.missing:
            raw = (*raw, None)
        values = [raw[place] for place in layout.places]
        for at, place, length in layout.texts:
            if raw[place] != length:
                return None
            try:
                values[at] = values[at].decode()
            except UnicodeDecodeError:
                return None
        for at in [at for at, low, high in layout.numbers if not low <= values[at] <= high]:
            if not self._is_absent(at, values[at]):
                return None
            values[at] = None
        return self._found(message, values)

    def _from_matrix(self, message: Any, tensor: Any, tail: Raw) -> Found | None:
        form = self._forms[tensor.datatype]
        if not form.size == tensor.parameters.binary_data_size == len(tail):
            return None
        features = form.unpack(tail)
        values = list(features)
        for at, texts in self._texts:
            text = texts.get(values[at])
            if text is None and not self._is_absent(at, values[at]):
                return None
            values[at] = text
        for at in [at for at, low, high in self._bounds if not low <= values[at] <= high]:
            if not self._is_absent(at, values[at]):
                return None
            values[at] = None
        return message, self._row(*values), features

    def _is_absent(self, at: int, value: float) -> bool:
        """NaN where a value may be unknown."""
        return value != value and not self._columns[at].column.required  # noqa: PLR0124 - only NaN differs from itself


# --- the types


def _request_type(tensors: list[Any]) -> Any:
    return msgspec.defstruct(
        "Request",
        [
            ("inputs", list[Union[tuple(tensors)]]),  # type: ignore[misc]  # noqa: UP007 - of as many as there are
            ("id", str | None, None),
            ("parameters", Parameters | None, None),
            ("outputs", list[WantedOutput] | None, None),
        ],
        gc=False,
    )


def _json_type(at: int, column: Input) -> Any:
    return _tensor_type(at, column, [("data", tuple[_value_type(column)]), ("parameters", None, None)])  # type: ignore[misc]


def _binary_type(at: int, column: Input) -> Any:
    return _tensor_type(at, column, [("parameters", _Size), ("data", None, None)])


def _tensor_type(at: int, column: Input, fields: list[Any]) -> Any:
    datatype = Literal[tuple(_NUMBERS)] if column.column.kind == "number" else Literal["BYTES"]
    always: list[Any] = [("datatype", datatype), ("shape", _ONES)]
    return msgspec.defstruct(f"Column{at}", [*always, *fields], tag_field="name", tag=column.name, gc=False)


def _matrix_type(width: int) -> Any:
    shape = tuple[Literal[1], Literal[width]]  # type: ignore[valid-type]
    fields: list[Any] = [
        ("datatype", Literal[tuple(_NUMBERS)]),
        ("shape", shape),
        ("parameters", _Size),
        ("data", None, None),
    ]
    return msgspec.defstruct("Matrix", fields, tag_field="name", tag=MATRIX, gc=False)


def _value_type(column: Input) -> Any:
    """A text, or a number within the column's bounds; null where the column may be unknown."""
    kinds: list[Any] = [str]
    if column.column.kind == "number":
        # Integers beyond 64 bits pass a type that has no bounds: they are the full way's to judge.
        whole = msgspec.Meta(ge=max(math.ceil(column.low), -_INT64), le=min(math.floor(column.high), _INT64 - 1))
        kinds = [Annotated[float, msgspec.Meta(ge=column.low, le=column.high)], Annotated[int, whole]]
    if not column.column.required:
        kinds.append(None)
    return Union[tuple(kinds)]  # noqa: UP007 - as above
