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


LOSS = "Log loss is +0.6057 against the last good version on the same 667 labelled rows (at most +0.0050)"
SERVES = "It keeps serving; the hub decides whether to train a challenger."
STOPPED = "JFK and LGA never got it. The rollout was stopped and the release quarantined."
BETTER = "better: 0.58 against 0.59 nats of the model in use; gain +0.01 ± 0.00 on 7570 held-out rows"
LOST = (
    "Predictions are worse than the model believes for 2 windows in a row: log loss 0.594, it promised 0.452 "
    "(2077 labels, mean label 0.30, predicted 0.23)."
)
SENTENCES = (
    f"m v7 predicts worse at JFK than it promised: {LOST} {SERVES}",
    f"v5 of m failed on EWR: {LOSS}; version v3 serves again. {STOPPED}",
    f"v7 of delay failed on LGA: {LOSS}. The rollout goes on: it accepts 2 failures. LGA serves its last good version.",
    "EWR runs v8, as rollout r-000008 ordered: EWR was ordered to take v8.",
    f"delay: {LOST}",
    f"delay, 2013-12-19 to 2013-12-26: {LOST}",
    "Version v8 is on probation: it answers all requests.",
    "Version v8 is on probation: it answers 50% of the requests.",
    "Version v8 is activated from Sun 14:45 on (Asia/Kolkata).",
    "At 50% of the requests. 35 rows answered without a fault; labels are not asked for. It goes on for 6 s at least.",
    "Listening. It goes on for 6 s and 30 rows at least.",
    "Listening. On probation: 6 of 20 rows answered.",
    "Loaded and warm, standing by.",
    f"Training m has a challenger: {BETTER}.",
    "rollout r-000008, wave 1: probation",
)


def test_composed_sentences_are_translated_or_marked_as_english() -> None:
    arabic = language.load("ar")
    assert "<bdi>EWR</bdi>" in arabic.said("EWR is offline")
    assert arabic.said("Something nobody foresaw.") == '<span lang="en" dir="ltr">Something nobody foresaw.</span>'
    assert arabic.said("<b>") == '<span lang="en" dir="ltr">&lt;b&gt;</span>'


@pytest.mark.parametrize("sentence", SENTENCES)
def test_what_agent_and_hub_say_every_day_is_said_in_arabic_to_its_end(sentence: str) -> None:
    said = language.load("ar").said(sentence)
    assert 'lang="en"' not in said
    assert re.findall(r"[A-Za-z]{4,}", re.sub(r"<bdi[^>]*>[^<]*</bdi>", "", said)) == []
    assert max(map(len, re.findall(r"<bdi[^>]*>([^<]*)</bdi>", said)), default=0) < 24


def test_a_sign_stays_before_its_number_in_a_sentence_from_the_other_side() -> None:
    assert '<bdi dir="ltr">+0.6057</bdi>' in language.load("ar").said(f"{LOSS}.")


def test_a_made_up_sentence_of_any_length_is_shown_as_it_is() -> None:
    text = "v1 of m failed on s: " * 500
    assert language.load("ar").said(text) == f'<span lang="en" dir="ltr">{text}</span>'
    half = "Nobody said this before. Wave 2 began."
    assert str(language.load("ar").said(half)).startswith('<span lang="en" dir="ltr">Nobody said this before.</span> ')


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
