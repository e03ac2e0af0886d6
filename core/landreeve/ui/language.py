"""Two languages: English is the source text and its own key, Arabic is a catalogue beside this file.

A catalogue entry is a text, or forms by CLDR plural category. Sentences that agent and hub compose (verdicts,
causes) may match a pattern of the catalogue; what matches none is shown as it was said, marked as English.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

from markupsafe import Markup, escape

LANGUAGES: Final = {"en": "English", "ar": "العربية"}
SIGNS: Final = "+-\N{MINUS SIGN}±<>≤≥"
LONGEST: Final = 800
MOST_HEARD: Final = 2000
_WORDS: Final = frozenset({"site", "model", "run", "who", "rows", "us", "base"})
"""Placeholders for one word; so are those of one letter."""
_NAMES: Final = r"[\w.-]+(?:(?:, | and )[\w.-]+)*(?: more)?"
NESTED: Final = "why"
"""The placeholder of patterns that stands for a sentence."""


@dataclass(frozen=True)
class Language:
    """One language of the consoles: ``code``, writing direction, texts, and patterns for composed sentences."""

    code: str
    texts: Mapping[str, str | Mapping[str, str]]
    patterns: tuple[tuple[re.Pattern[str], str], ...] = ()
    _heard: dict[str, Markup] = field(default_factory=dict, repr=False, compare=False)

    @property
    def direction(self) -> str:
        """``rtl`` or ``ltr``, for the ``dir`` attribute."""
        return "rtl" if self.code == "ar" else "ltr"

    def text(self, source: str, **values: object) -> str:
        """The text in this language with ``{name}`` filled in; the source text where none is known."""
        known = self.texts.get(source, source)
        template = known if isinstance(known, str) else known["other"]
        return template.format(**values) if values else template

    def markup(self, source: str, **values: object) -> Markup:
        """Like `text` for HTML: values are escaped and isolated (``<bdi>``), so ids and units keep their order."""
        known = self.texts.get(source, source)
        template = known if isinstance(known, str) else known["other"]
        safe = {name: _isolated(value) for name, value in values.items()}
        return escape(template).format(**safe) if values else escape(template)

    def count(self, one: str, many: str, n: int, **values: object) -> str:
        """A counted text: English chooses ``one`` or ``many``, Arabic one of its six forms, keyed by ``many``."""
        forms = self.texts.get(many)
        if forms is None or isinstance(forms, str):
            template = one if n == 1 else (forms or many)
        else:
            template = forms.get(arabic_plural(n), forms["other"])
        return template.format(n=f"{n:,}", **values)

    def said(self, sentence: str) -> Markup:
        """What agent or hub composed, translated where a text or pattern is known: the whole, else sentence by
        sentence."""
        if self.code == "en" or not sentence:
            return escape(sentence)
        if len(sentence) > LONGEST:  # nothing of ours, and patterns take long over what a device made up
            return _in_english(sentence)
        if len(self._heard) >= MOST_HEARD:
            self._heard.clear()
        if sentence not in self._heard:
            self._heard[sentence] = self._said(sentence)
        return self._heard[sentence]

    def _said(self, sentence: str) -> Markup:
        whole = self._known(sentence)
        if whole is not None:
            return whole
        parts = re.split(r"(?<=[.:]) (?=[A-Z])", sentence)
        known = [self._known(part) for part in parts]
        if not any(known):
            return _in_english(sentence)
        return Markup(" ").join(k or _in_english(part) for k, part in zip(known, parts, strict=True))

    def _known(self, sentence: str) -> Markup | None:
        known = self.texts.get(sentence)
        if isinstance(known, str):
            return escape(known)
        for pattern, template in self.patterns:
            if found := pattern.fullmatch(sentence):
                values = {name: self._value(name, value) for name, value in found.groupdict().items()}
                return escape(template).format(**values)
        return None

    def _value(self, name: str, value: str) -> Markup:
        """A captured value as it is; one that is itself a sentence is translated in turn."""
        return self.said(value) if name == NESTED else _isolated(value)


def _isolated(value: object) -> Markup:
    """A value within a sentence of either direction; a sign stays before its number."""
    text = str(value)
    if text and text[0] in SIGNS:
        return Markup('<bdi dir="ltr">{}</bdi>').format(value)
    return Markup("<bdi>{}</bdi>").format(value)


def _in_english(sentence: str) -> Markup:
    return Markup('<span lang="en" dir="ltr">{}</span>').format(sentence)


def arabic_plural(n: int) -> str:
    """The CLDR plural category of ``n`` in Arabic (Unicode CLDR 45, cardinal rules)."""
    if n in {0, 1, 2}:
        return ("zero", "one", "two")[n]
    if 3 <= n % 100 <= 10:
        return "few"
    return "many" if 11 <= n % 100 <= 99 else "other"


def load(code: str) -> Language:
    """Read the catalogue of ``code``. Raises KeyError for a language we do not speak."""
    if code not in LANGUAGES:
        raise KeyError(code)
    if code == "en":
        return Language("en", {})
    path = resources.files("landreeve.ui") / "translations" / f"{code}.json"
    document = json.loads(path.read_text("utf-8"))
    patterns = tuple((_pattern(source), target) for source, target in document["patterns"].items())
    return Language(code, document["texts"], patterns)


def _pattern(source: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", source)
    named = [re.escape(part) if i % 2 == 0 else f"(?P<{part}>{_shape(part)})" for i, part in enumerate(parts)]
    whole = "".join(named)
    # A sentence within another one has lost its full stop.
    return re.compile(re.sub(r"\\\.$", r"\\.?", whole), re.DOTALL)


def _shape(name: str) -> str:
    """What a placeholder may stand for: without this, one would swallow half of another sentence."""
    if name in {"sites", "others"}:
        return _NAMES
    return r"\S+?" if len(name) == 1 or name in _WORDS else ".+?"


def negotiate(cookie: str | None, accept: str) -> str:
    """The language to answer in: the person's choice, else the browser's first we speak, else English."""
    if cookie in LANGUAGES:
        return str(cookie)
    for entry in accept.split(","):
        code = entry.split(";")[0].strip().split("-")[0].lower()
        if code in LANGUAGES:
            return code
    return "en"
