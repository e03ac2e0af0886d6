"""The Jinja environment of one language: templates escape by default and refuse undefined names."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from landreeve.ui import figures
from landreeve.ui.assets import Assets
from landreeve.ui.language import LANGUAGES, Language


class PageEnvironment(Environment):
    """``row.update`` means the member of a JSON object, never the dict's own method."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Members of a mapping first, then attributes, as Jinja does."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def make(language: Language, assets: Assets, packages: Sequence[str]) -> Environment:
    """An environment that finds templates in ``<package>/templates`` of each package, then in ours.

    One per language, so that macros speak it without being handed it at every call.
    """
    loaders: list[BaseLoader] = [FunctionLoader(_reader(name)) for name in (*packages, "landreeve.ui")]
    env = PageEnvironment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    env.globals.update(_words(language), asset=assets.url, languages=LANGUAGES)
    env.filters.update(_filters(language))
    env.globals["ui"] = env.get_template("macros.html").module
    return env


def _reader(package: str) -> Any:
    folder = resources.files(package) / "templates"

    def read(name: str) -> str | None:
        path = folder.joinpath(*name.split("/"))
        return path.read_text("utf-8") if path.is_file() else None

    return read


def _words(language: Language) -> dict[str, Any]:
    return {"t": language.markup, "tt": language.text, "tc": language.count, "said": language.said, "L": language}


def _filters(language: Language) -> dict[str, Any]:
    return {
        "whole": figures.whole,
        "number": figures.number,
        "ms": figures.milliseconds,
        "percent": figures.percent,
        "short": figures.short,
        "stamp": figures.stamp,
        "ago": lambda value, now: _ago(language, value, now),
        "version": lambda value: value if str(value).startswith("v") else f"v{value}",
        "rows": _rows,
    }


def _ago(language: Language, value: str | float | None, now: datetime) -> Markup:
    count, unit = figures.ago(value, now)
    if unit in {"never", "now"}:
        return language.markup({"never": "never", "now": "just now"}[unit])
    return language.markup({"s": "{n} s ago", "min": "{n} min ago", "h": "{n} h ago", "d": "{n} d ago"}[unit], n=count)


def _rows(value: object) -> list[Mapping[str, Any]]:
    """Rows of a JSON answer: a list as it is, ``{"items": […]}`` or None as a list."""
    if isinstance(value, Mapping):
        value = next((part for part in value.values() if isinstance(part, list)), [])
    return list(value) if isinstance(value, list | tuple) else []
