"""Canonical JSON, RFC 8785 (JCS): one value, one sequence of bytes. Pure."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

MAX_INTEGER = 2**53 - 1


def canonical(value: Any) -> bytes:
    """The bytes of a JSON value: members sorted by UTF-16 code units, numbers as ECMAScript writes them.

    Numbers are doubles: `plain` keeps larger integers as text. NaN and what is no number are ValueError.

    >>> canonical({"b": 1.0, "a": [1e-7, 1e21, 0.5, "é"]}).decode()
    '{"a":[1e-7,1e+21,0.5,"é"],"b":1}'
    """
    return _text(value).encode()


def plain(value: Any) -> Any:
    """What `canonical` can write: numbers it cannot hold become text, lone surrogates the replacement character."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(member) for name, member in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [plain(member) for member in value]
    return plain(str(value))


def _text(value: Any) -> str:
    if isinstance(value, str):
        # json escapes exactly what ECMAScript does: quotes, backslash, control characters, with the short forms.
        return json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be"))
        return "{" + ",".join(f"{_text(name)}:{_text(member)}" for name, member in members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(member) for member in value) + "]"
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _number(value: float) -> str:
    """ECMA-262 Number::toString; Python's repr has the same shortest digits, in another shape."""
    if isinstance(value, int):
        if abs(value) <= MAX_INTEGER:
            return str(value)
        try:
            value = float(value)  # what a reader made of a float without a fraction; the RFC knows doubles alone
        except OverflowError:
            raise ValueError("an integer beyond what JSON numbers hold") from None
    if not math.isfinite(value):
        raise ValueError(f"{value} is no JSON number")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    return sign + _shaped(digits.rstrip("0"), point)


def _shaped(digits: str, point: int) -> str:
    """``digits`` with the decimal point after ``point`` of them."""
    count = len(digits)
    if count <= point <= 21:
        return digits + "0" * (point - count)
    if 0 < point <= 21:
        return digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    mantissa = digits[0] + ("." + digits[1:] if count > 1 else "")
    return f"{mantissa}e{point - 1:+d}"
