"""Layered settings that can explain themselves.

A schema is a frozen `msgspec.Struct` whose fields are sections (structs again) or values annotated with
``msgspec.Meta(description=…)``, every one with a default. Layers, later over earlier: defaults, files in the
order given, environment (``PREFIX_SECTION__KEY``), flags (``section.key``). An unknown key is an error that
names the nearest known one; a value of the wrong type names its key, its source and what is expected.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec

S = TypeVar("S", bound=msgspec.Struct)


class SettingsError(ValueError):
    """Settings that cannot be used; the text names key, source and mend."""


@dataclass(frozen=True)
class Field:
    """One setting: dotted key, type, default, and what it is for."""

    key: str
    kind: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Explanation:
    """A setting's value, where it comes from, and every layer that spoke (lowest first)."""

    key: str
    value: Any
    source: str
    help: str
    layers: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Loaded(Generic[S]):
    """Settings together with the layers they were made from."""

    values: S
    fields: tuple[Field, ...]
    layers: tuple[tuple[str, dict[str, Any]], ...]

    def explain(self, key: str) -> Explanation:
        """Where the value of a key comes from; `SettingsError` for a key that is not known."""
        field = _known(key, {f.key: f for f in self.fields}, "explain")
        spoken = [("default", field.default)]
        spoken += [(source, found[key]) for source, found in self.layers if key in found]
        return Explanation(key, _value(self.values, key), spoken[-1][0], field.help, tuple(spoken))


def fields_of(schema: type[msgspec.Struct]) -> tuple[Field, ...]:
    """Every setting of a schema, in order."""
    return tuple(_walk(schema, ""))


def load(
    schema: type[S],
    *,
    files: Sequence[Path] = (),
    prefix: str = "LANDREEVE",
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> Loaded[S]:
    """The settings from all layers; a file that does not exist is no layer. `SettingsError` says what is wrong."""
    fields = fields_of(schema)
    known = {field.key: field for field in fields}
    layers = [(str(path), _read(path, known)) for path in files if path.exists()]
    layers.append(("environment", _from_environ(prefix, environ or {}, known)))
    layers.append(
        ("flag", {_known(k, known, "flag").key: _parse(known[k], v, "flag") for k, v in (flags or {}).items()})
    )
    document: dict[str, Any] = {}
    for source, found in layers:
        for key, value in found.items():
            _check(known[key], value, source)
            _put(document, key, value)
    try:
        values = msgspec.convert(document, schema)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings: {error}") from error
    return Loaded(values, fields, tuple((source, found) for source, found in layers if found))


def write_values(path: Path, schema: type[msgspec.Struct], changes: Mapping[str, str]) -> None:
    """Set keys in a TOML file, keeping the others; the whole file is checked before it is replaced."""
    known = {field.key: field for field in fields_of(schema)}
    found = _read(path, known) if path.exists() else {}
    for key, text in changes.items():
        field = _known(key, known, "set")
        found[key] = _parse(field, text, "set")
        _check(field, found[key], "set")
    temporary = path.with_suffix(".new")
    temporary.write_text(_toml(found), encoding="utf-8")
    temporary.replace(path)


def _walk(schema: type[msgspec.Struct], head: str) -> Iterator[Field]:
    hints = get_type_hints(schema, include_extras=True)
    for info in msgspec.structs.fields(schema):
        hint, help_text = _unwrap(hints[info.name])
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield from _walk(hint, f"{head}{info.name}.")
            continue
        default = info.default_factory() if info.default is msgspec.NODEFAULT else info.default
        yield Field(head + info.name, hint, default, help_text)


def _unwrap(hint: Any) -> tuple[Any, str]:
    if get_origin(hint) is Annotated:
        kind, *metas = get_args(hint)
        texts = [meta.description for meta in metas if isinstance(meta, msgspec.Meta) and meta.description]
        constraints = [meta for meta in metas if isinstance(meta, msgspec.Meta)]
        return (Annotated[kind, *constraints] if _is_value(kind) else kind), " ".join(texts)
    return hint, ""


def _is_value(kind: Any) -> bool:
    return not (isinstance(kind, type) and issubclass(kind, msgspec.Struct))


def _read(path: Path, known: Mapping[str, Field]) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not readable as TOML: {error}") from error
    return {_known(key, known, str(path)).key: value for key, value in _flatten(document, "", known)}


def _flatten(document: Mapping[str, Any], head: str, known: Mapping[str, Field]) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        key = head + name
        if isinstance(value, dict) and key not in known:
            yield from _flatten(value, f"{key}.", known)
        else:
            yield key, value


def _from_environ(prefix: str, environ: Mapping[str, str], known: Mapping[str, Field]) -> dict[str, Any]:
    sections = {key.partition(".")[0].upper() for key in known if "." in key}
    found: dict[str, Any] = {}
    for name, text in environ.items():
        head, _, rest = name.partition("_")
        key = rest.lower().replace("__", ".")
        if head != prefix or (rest.partition("__")[0] not in sections and key not in known):
            continue
        field = _known(key, known, f"environment variable {name}")
        found[key] = _parse(field, text, f"environment variable {name}")
    return found


def _known(key: str, known: Mapping[str, Field], source: str) -> Field:
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingsError(f"{source}: unknown setting {key!r}{hint}")


def _parse(field: Field, text: str, source: str) -> Any:
    try:
        return msgspec.convert(text, field.kind, strict=False)
    except msgspec.ValidationError:
        pass  # lists and tables are written as JSON; what fails there too is reported below
    try:
        return msgspec.to_builtins(msgspec.json.decode(text.encode(), type=field.kind))
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise SettingsError(f"{source}: {field.key} = {text!r}: {error}") from error


def _check(field: Field, value: Any, source: str) -> None:
    try:
        msgspec.convert(value, field.kind)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{source}: {field.key} = {value!r}: {error}") from error


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *heads, last = key.split(".")
    for head in heads:
        document = document.setdefault(head, {})
    document[last] = value


def _value(values: Any, key: str) -> Any:
    for name in key.split("."):
        values = getattr(values, name)
    return values


def _toml(found: Mapping[str, Any]) -> str:
    document: dict[str, Any] = {}
    for key, value in sorted(found.items()):
        _put(document, key, value)
    return _plain_toml(document, "")


def _plain_toml(document: Mapping[str, Any], head: str) -> str:
    values = {k: v for k, v in document.items() if not isinstance(v, dict)}
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in values.items() if value is not None]
    if head and lines:
        lines.insert(0, f"[{head}]")
    text = "\n".join(lines) + ("\n\n" if lines else "")
    for name, value in document.items():
        if isinstance(value, dict):
            text += _plain_toml(value, f"{head}.{name}" if head else name)
    return text
