"""The enrolment token as text: ``lrt1.`` and base64url of JSON ``{url, ca, secret, site}``.

``ca`` is the sha256 of the hub authority's certificate: with it, the box knows the hub before it speaks to it.
"""

import base64
import binascii
from urllib.parse import urlsplit

import msgspec

from landreeve.wire.ids import check_digest, check_id

PREFIX = "lrt1."


class BadTokenError(ValueError):
    """A text that is no enrolment token; the message says what is wrong, never the secret."""


class EnrolmentToken(msgspec.Struct, frozen=True, kw_only=True):
    """What a token carries. ``url`` is the hub's HTTPS address, ``secret`` is spent by its first use."""

    url: str
    ca: str
    secret: str
    site: str

    def __repr__(self) -> str:
        return f"EnrolmentToken(url={self.url!r}, site={self.site!r})"


def format_token(token: EnrolmentToken) -> str:
    """The token's text."""
    return PREFIX + base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("=")


def parse_token(text: str) -> EnrolmentToken:
    """The token in a text, tolerant of white space around and in it (it is copied from terminals)."""
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise BadTokenError(f"a token begins with {PREFIX!r}; copy the whole line that the hub printed")
    body = text.removeprefix(PREFIX)
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        token = msgspec.json.decode(raw, type=EnrolmentToken)
        check_digest(token.ca)
        check_id(token.site)
    except (binascii.Error, ValueError) as error:
        raise BadTokenError(f"the token is damaged or cut off ({error}); copy the whole line again") from error
    if urlsplit(token.url).scheme != "https" or not urlsplit(token.url).hostname:
        raise BadTokenError(f"the token names {token.url[:80]!r}, which is no https address; mint a new one")
    return token
