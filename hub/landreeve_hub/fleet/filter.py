"""The filter language of the device table: ``is:offline hw:npu model:demand@4 -tag:lab dubai``.

Terms are joined by *and*; ``-`` before a term means *not*; a word without a key looks into id, site and hardware.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]
KEYS = ("is", "hw", "model", "site", "tag", "version", "agent")


def select(rows: Iterable[Row], text: str) -> list[Row]:
    """The rows that match every term of ``text``; all rows for an empty text.

    >>> [row["site"] for row in select([{"site": "EWR", "state": "offline"}, {"site": "JFK"}], "is:offline")]
    ['EWR']
    """
    terms = text.lower().split()
    return [row for row in rows if all(_holds(row, term) for term in terms)]


def unknown_key(text: str) -> str:
    """The first term with a key that is none, without its value; such a term is otherwise looked for as a word.

    >>> unknown_key("tag:lab -colour:red"), unknown_key("tag:lab dubai")
    ('colour:', '')
    """
    keys = [key.removeprefix("-") for key, colon, _ in (term.partition(":") for term in text.lower().split()) if colon]
    return next((f"{key}:" for key in keys if key not in KEYS), "")


def _holds(row: Row, term: str) -> bool:
    if term.startswith("-") and len(term) > 1:
        return not _holds(row, term[1:])
    key, colon, value = term.partition(":")
    if not colon:
        return _text(row, term)
    match key:
        case "is":
            return _is(row, value)
        case "hw":
            return value in _hardware(row)
        case "model":
            return _model(row, value)
        case "site":
            return value in str(row.get("site", "")).lower()
        case "tag":
            return _tag(row, value)
        case "version" | "agent":
            return value in str(row.get("agent", "")).lower()
    return _text(row, term)


def _is(row: Row, value: str) -> bool:
    if value == "online":
        return bool(row.get("online"))
    return str(row.get("state", "")).lower() == value


def _hardware(row: Row) -> str:
    hardware = row.get("hardware") or {}
    return f"{hardware.get('kind', '')} {hardware.get('text', '')}".lower()


def _model(row: Row, value: str) -> bool:
    name, at, version = value.partition("@")
    for model in row.get("models") or ():
        same = name in str(model.get("model", "")).lower()
        if same and (not at or str(model.get("version", "")).lower().lstrip("v") == version.lstrip("v")):
            return True
    return False


def _tag(row: Row, value: str) -> bool:
    labels = row.get("labels") or {}
    pairs = [f"{key}={label}".lower() for key, label in labels.items()]
    return any(value in {pair, pair.partition("=")[0], pair.partition("=")[2]} for pair in pairs)


def _text(row: Row, word: str) -> bool:
    models = " ".join(str(model.get("model", "")) for model in row.get("models") or ())
    return word in f"{row.get('id', '')} {row.get('site', '')} {_hardware(row)} {models}".lower()
