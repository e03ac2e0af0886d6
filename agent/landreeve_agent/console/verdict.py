"""The verdict: everything that deserves a look, worst first, and one plain sentence on top."""

from collections.abc import Iterable
from typing import Literal

import msgspec

Level = Literal["ok", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One thing to look at: what it is, what it means and what to do; ``link`` is the page that shows it."""

    level: Level
    sentence: str
    link: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """The worst level, the sentence on top, its detail, and where to look."""

    level: Level
    sentence: str
    detail: str
    link: str


_RANK = {"error": 0, "warning": 1, "ok": 2}


def verdict_of(findings: Iterable[Finding], quiet: str) -> Verdict:
    """The verdict over all findings; ``quiet`` is the detail when there is nothing to look at.

    >>> verdict_of([Finding("warning", "The disk is almost full.", "/")], "").sentence
    'Everything works. One thing to look at.'
    """
    ordered = sorted(findings, key=lambda finding: _RANK[finding.level])
    if not ordered:
        return Verdict("ok", "Everything works.", quiet, "")
    first, rest = ordered[0], len(ordered) - 1
    detail = first.sentence + (f" (and {rest} more)" if rest else "")
    if first.level == "error":
        return Verdict("error", first.sentence, f"{rest} more to look at." if rest else quiet, first.link)
    count = "One thing" if not rest else f"{len(ordered)} things"
    return Verdict("warning", f"Everything works. {count} to look at.", detail, first.link)
