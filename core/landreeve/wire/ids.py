"""Identifiers: what may stand in a topic segment, a file name or a certificate's common name."""

import re

_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BadIdError(ValueError):
    """A text that is no identifier; the message names the rule."""


def check_id(text: str) -> str:
    """The same text when it is 1 to 64 of ``A-Za-z0-9._-``, beginning and ending with a letter or digit.

    >>> check_id("site-7.b")
    'site-7.b'
    """
    if not _ID.fullmatch(text) or ".." in text:
        raise BadIdError(
            f"{text[:80]!r} is no identifier: use 1 to 64 of A-Z a-z 0-9 . _ - , "
            "beginning and ending with a letter or digit, without '..'"
        )
    return text


def check_digest(text: str) -> str:
    """The same text when it is a sha256 in 64 lower-case hex digits."""
    if not _DIGEST.fullmatch(text):
        raise BadIdError(f"{text[:80]!r} is no sha256: expected 64 lower-case hex digits")
    return text
