"""What both command lines share: output formats, exit codes, one way to fail.

Results go to standard output, messages to standard error, so that ``-o json`` can be piped.
"""

import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Any, Literal, NoReturn

import msgspec

Level = Literal["ok", "warn", "fail"]


class Exit(IntEnum):
    """Exit codes of ``landreeve`` and ``landreeve-hub``."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    PROBLEMS = 3
    NOT_FOUND = 4
    AUTH = 5
    CONFLICT = 6
    UNREACHABLE = 7
    TIMEOUT = 8


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def note(text: str) -> None:
    """A message for the person at the terminal."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def fail(code: Exit, text: str) -> NoReturn:
    """Say why, and leave with that code."""
    note(f"error: {text}")
    raise SystemExit(int(code))


def emit(result: Any, form: Format | str, columns: Sequence[str] = ()) -> None:
    """Write a result: rows as a table, or anything as JSON or YAML."""
    plain = msgspec.to_builtins(result)
    match Format(form):
        case Format.JSON:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(plain), indent=2).decode() + "\n")
        case Format.YAML:
            sys.stdout.write("\n".join(_yaml(plain, 0)) + "\n")
        case Format.TABLE:
            _table(plain, columns)


class Check(msgspec.Struct, frozen=True):
    """One line of a doctor's report: what was looked at, how it is, the fact, and how to mend it."""

    check: str
    state: Level
    fact: str
    fix: str = ""


def report(checks: Sequence[Check], form: Format | str) -> None:
    """Write what a doctor found; exit code 3 when a check fails."""
    emit(checks, form, ("check", "state", "fact", "fix"))
    if any(one.state == "fail" for one in checks):
        raise SystemExit(int(Exit.PROBLEMS))


def _table(plain: Any, columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = plain if isinstance(plain, list) else [{"what": k, "value": v} for k, v in plain.items()]
    if not rows:
        note("nothing to show")
        return
    names = list(columns) if columns and isinstance(plain, list) else list(rows[0])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        numeric = all(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    # A pipe has no width: give it room instead of wrapping at 80.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, Mapping | list | tuple):
        return msgspec.json.encode(value).decode()
    return str(value)


def _yaml(value: Any, depth: int) -> list[str]:
    pad = "  " * depth
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _yaml_member(f"{pad}{_scalar(key)}:", item, depth)]
    if isinstance(value, list | tuple) and value:
        return [line for item in value for line in _yaml_member(f"{pad}-", item, depth)]
    return [pad + _scalar(value)]


def _yaml_member(head: str, item: Any, depth: int) -> list[str]:
    if isinstance(item, Mapping | list | tuple) and item:
        return [head, *_yaml(item, depth + 1)]
    return [f"{head} {_scalar(item)}"]


def _scalar(value: Any) -> str:
    # JSON scalars are YAML scalars, so quoting is settled by the JSON encoder.
    return msgspec.json.encode(value).decode()
