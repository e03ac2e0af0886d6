"""What a person got wrong in a document, in words: which field, what is wrong, and what was probably meant. Pure."""

import difflib
import re
import types
import typing
from typing import Any

import msgspec

_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_CHOICE = re.compile(r"Invalid enum value (?P<value>.+)")
_TYPE = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`")
_WORDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false", "object": "an object"}
_WORDS |= {"array": "a list", "null": "null"}
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")
MOST_SHOWN = 60


def in_words(error: msgspec.ValidationError, kind: Any, name: str) -> str:
    """The fault of a value that should be a ``kind`` and is called ``name``.

    >>> class Gate(msgspec.Struct, forbid_unknown_fields=True):
    ...     max_failures: int = 0
    >>> try:
    ...     msgspec.convert({"max_failure": 1}, Gate)
    ... except msgspec.ValidationError as error:
    ...     print(in_words(error, Gate, "gate"))
    gate.max_failure: unknown field; did you mean max_failures? There are: max_failures
    """
    text, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    place, there = f"{name}{path.replace('[...]', '[]')}", _kind_at(kind, path)
    if found := _UNKNOWN.fullmatch(text):
        slip = found["name"][:MOST_SHOWN]
        return f"{place}.{slip}: unknown field{_meant(slip, _fields(there))}"
    if found := _MISSING.fullmatch(text):
        return f"{place}.{found['name']}: missing"
    if found := _CHOICE.fullmatch(text):
        value = found["value"][:MOST_SHOWN]
        return f"{place}: {value} is no choice{_meant(value.strip(chr(39)), _choices(there))}"
    if found := _TYPE.fullmatch(text):
        return f"{place}: must be {_words(found['wanted'])}, not {_words(found['got'])}"
    return f"{place}: {text}"


def unknown_field(place: str, slip: str, kind: type[msgspec.Struct]) -> str:
    """The fault of a field that ``kind`` does not have.

    >>> class Day(msgspec.Struct):
    ...     start: str
    >>> unknown_field("windows[0]", "begin", Day)
    'windows[0].begin: unknown field. There are: start'
    """
    shown = slip[:MOST_SHOWN]
    return f"{place}.{shown}: unknown field{_meant(shown, _fields(kind))}"


def _meant(slip: str, known: list[str]) -> str:
    near = difflib.get_close_matches(slip, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "." if known else ""
    return f"{hint} There are: {', '.join(known)}" if known else hint


def _words(kinds: str) -> str:
    return " or ".join(_WORDS.get(kind, kind) for kind in kinds.split(" | ") if kind != "null") or "null"


def _fields(kind: Any) -> list[str]:
    return list(kind.__struct_fields__) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else []


def _choices(kind: Any) -> list[str]:
    return [str(one) for one in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else []


def _kind_at(kind: Any, path: str) -> Any:
    """The type at a path such as ``.waves[0].share``; None where it is lost."""
    for field, _ in _STEP.findall(path):
        kind = _present(kind)
        if field:
            kind = typing.get_type_hints(kind).get(field) if field in _fields(kind) else None
        else:
            inside = typing.get_args(kind)
            kind = inside[0] if inside else None
    return _present(kind)


def _present(kind: Any) -> Any:
    """The type without ``None`` and without a name of its own."""
    kind = getattr(kind, "__value__", kind)
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return next((one for one in typing.get_args(kind) if one is not type(None)), kind)
    return kind
