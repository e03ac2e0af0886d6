"""What the pages are made of: small, whole, in two languages, and with no side of its own."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
from jinja2 import Environment
from jinja2.ext import extract_from_ast
from landreeve.ui import assets, figures, language

UI = Path(str(resources.files("landreeve.ui")))
PACKAGES = ("landreeve.ui", "landreeve_agent.console", "landreeve_hub.console")


def templates() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted(Path(str(resources.files(package) / "templates")).glob("*.html")):
            yield path.name, path.read_text("utf-8")


def styles() -> list[Path]:
    return sorted((UI / "static" / "css").glob("*.css"))


def test_vendored_files_are_the_ones_their_readme_names() -> None:
    table = (UI / "vendor" / "README.md").read_text("utf-8")
    named = re.findall(r"^\| `([^`]+)` .* `([0-9a-f]{64})` \|$", table, re.MULTILINE)
    assert len(named) == 5
    for name, digest in named:
        assert hashlib.sha256((UI / "vendor" / name).read_bytes()).hexdigest() == digest, name


def test_the_script_of_a_page_stays_small() -> None:
    files = assets.load()
    script = files.find(files.url("app.js").rpartition("/")[2])
    assert script is not None
    assert len(script.body) <= 100_000
    assert len(gzip.compress(script.body, 9)) <= 40_000


def test_a_name_changes_with_its_content() -> None:
    one = assets.Assets([("a.css", b"a", "text/css")])
    other = assets.Assets([("a.css", b"b", "text/css")])
    assert one.url("a.css") != other.url("a.css")
    assert one.find("a.css") is None


def test_no_style_knows_left_or_right() -> None:
    sided = re.compile(r"(?<![\w-])(left|right)(?![\w-])|-(left|right)\b")
    found = [
        f"{path.name}: {line}"
        for path in styles()
        for line in path.read_text("utf-8").splitlines()
        if sided.search(line)
    ]
    assert found == []


def test_no_template_styles_or_scripts_inline() -> None:
    inline = re.compile(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)|javascript:")
    assert [name for name, text in templates() if inline.search(text)] == []


def test_every_text_is_in_the_arabic_catalogue() -> None:
    known = language.load("ar").texts
    missing = {text for name, source in templates() for text in texts(source) if text not in known}
    assert missing == set()


def texts(source: str) -> set[str]:
    found = set()
    for _, function, message in extract_from_ast(Environment(autoescape=True).parse(source), ("t", "tt", "tc")):
        if isinstance(message, tuple):
            found.add(message[1 if function == "tc" else 0])
        elif message:
            found.add(message)
    return {text for text in found if text}


def test_translations_keep_their_placeholders() -> None:
    document = json.loads((UI / "translations" / "ar.json").read_text("utf-8"))
    for source, target in [*document["texts"].items(), *document["patterns"].items()]:
        forms = [target] if isinstance(target, str) else [target["few"], target["many"], target["other"]]
        for form in forms:
            assert set(re.findall(r"\{\w+\}", form)) == set(re.findall(r"\{\w+\}", source)), source


@pytest.mark.parametrize(
    ("n", "words"),
    [(0, "لا مواقع"), (1, "موقع واحد"), (2, "موقعان"), (3, "3 مواقع"), (11, "11 موقعًا"), (100, "100 موقع")],
)
def test_arabic_counts_in_six_forms(n: int, words: str) -> None:
    assert language.load("ar").count("one site", "{n} sites", n) == words


def test_composed_sentences_are_translated_or_marked_as_english() -> None:
    arabic = language.load("ar")
    assert "<bdi>EWR</bdi>" in arabic.said("EWR is offline")
    assert arabic.said("Something nobody foresaw.") == '<span lang="en" dir="ltr">Something nobody foresaw.</span>'
    assert arabic.said("<b>") == '<span lang="en" dir="ltr">&lt;b&gt;</span>'


@pytest.mark.parametrize(
    ("cookie", "accept", "code"), [(None, "ar-AE,en;q=0.8", "ar"), ("en", "ar", "en"), ("xx", "de", "en")]
)
def test_language_is_the_choice_then_the_browsers_then_english(cookie: str | None, accept: str, code: str) -> None:
    assert language.negotiate(cookie, accept) == code


def test_unknown_is_a_dash_never_a_zero() -> None:
    shown = [figures.whole(None), figures.milliseconds(float("nan")), figures.percent(None), figures.number(None)]
    assert shown == [figures.UNKNOWN] * 4


@pytest.mark.parametrize(
    ("value", "text"), [(0.012, "12 µs"), (0.64, "0.64 ms"), (20.94, "20.9 ms"), (1234.0, "1,234 ms")]
)
def test_milliseconds_keep_the_digits_that_matter(value: float, text: str) -> None:
    assert figures.milliseconds(value).replace("\N{NO-BREAK SPACE}", " ") == text
