"""A request of the Open Inference Protocol as it is sent, and as it is once it has been decoded.

None of these holds a reference to itself, so the collector need not look at them (``gc=False``).
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from numpy.typing import NDArray

from landreeve_agent.serving.columns import Values

Array = NDArray[Any]


class InputParameters(msgspec.Struct, gc=False):
    binary_data_size: int | None = None


class InputTensor(msgspec.Struct, gc=False):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any] | None = None
    parameters: InputParameters | None = None


class OutputParameters(msgspec.Struct, gc=False):
    binary_data: bool | None = None


class WantedOutput(msgspec.Struct, gc=False):
    name: str
    parameters: OutputParameters | None = None


class Parameters(msgspec.Struct, gc=False):
    at: str | list[str] | None = None
    ids: list[str] | None = None
    key: str | None = None
    priority: int | None = None
    timeout: int | None = None
    binary_data_output: bool = False


class Body(msgspec.Struct, gc=False):
    inputs: list[InputTensor]
    id: str | None = None
    parameters: Parameters | None = None
    outputs: list[WantedOutput] | None = None


class Infer(msgspec.Struct, eq=False):
    """A decoded request.

    Of a tabular model ``columns`` maps a name to its ``rows`` values, numbers that are absent being None; the common
    small requests come as ``records`` instead (each row as it is captured, a dict or a Struct with the columns' names)
    with ``features``, the rows as the graph of ``interface`` takes them. Of a tensor model ``tensors`` are the graph's
    inputs in its order. ``wanted`` says for each output whether the caller wants its bytes (True), its JSON (False) or
    nothing of it (None). ``key`` makes an A/B test sticky; ``priority`` is 1 (first) to 3; ``timeout_us`` how long the
    request may wait.
    """

    id: str
    ids: list[str] | None
    ats: list[str | None]
    rows: int
    columns: dict[str, Values]
    tensors: list[Array]
    wanted: tuple[bool | None, ...]
    key: str = ""
    priority: int = 2
    timeout_us: int = 0
    records: list[Any] | None = None
    features: list[Sequence[float]] | None = None
    interface: object = None

    def value(self, column: str) -> str:
        """The first row's value of that column as text, a number alike however it was written; empty for none."""
        if not column:
            return ""
        if self.records is not None:
            found = _value(self.records[0], column)
        else:
            values = self.columns.get(column)
            found = values[0] if values else None
        if found is None:
            return ""
        return str(float(found)) if isinstance(found, int | float) else str(found)

    def assigned_by(self, column: str) -> tuple[str, str]:
        """What a split assigns it by, and what that is: its own ``key``, the value of a ``column``, or the ``request``
        alone."""
        if self.key:
            return self.key, "key"
        if value := self.value(column):
            return value, "column"
        return self.id, "request"

    def captured(self) -> list[Any]:
        """Each row's columns, as the capture writes them."""
        if self.records is not None:
            return self.records
        return [{name: value[i] for name, value in self.columns.items()} for i in range(self.rows)]

    def dicts(self) -> list[dict[str, Any]]:
        """Each row's columns by their names."""
        found: list[dict[str, Any]] = msgspec.to_builtins(self.captured())
        return found


def _value(record: Any, column: str) -> Any:
    """A column of a row as it is captured: a dict, or a Struct whose fields are named only where it is written."""
    if isinstance(record, dict):
        return record.get(column)
    names = type(record).__struct_encode_fields__
    return getattr(record, type(record).__struct_fields__[names.index(column)]) if column in names else None
