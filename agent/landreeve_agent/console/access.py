"""Who may use the local console and API: one-time codes, browser sessions, bearer tokens, hosts and origins.

There is no password to choose, forget or leave at its default: whoever can run ``landreeve code`` on the box
gets a code, and a code makes one browser session.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

COOKIE = "landreeve_session"
# No I, L, O, U, 0, 1: read aloud and typed without doubt. 8 of 30 signs are 39 bits, against 10 tries a minute.
_SIGNS = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
_TRIES = 10
_REFILL_S = 30.0


class Scope(StrEnum):
    """What a caller may do."""

    FULL = "full"
    INTAKE = "intake"


@dataclass(frozen=True)
class Actor:
    """A caller that proved who it is; ``cookie`` tells a browser from a program."""

    name: str
    scope: Scope
    cookie: bool = False


@dataclass(frozen=True)
class TooManyTries:
    """A sign-in refused unseen; try again after so many seconds."""

    retry_after_s: float


@dataclass
class Codes:
    """One-time codes: hashed, single use, expiring; guessing is slowed for everyone together.

    ``clock`` is monotonic seconds.
    """

    clock: Callable[[], float]
    valid_s: float
    _live: dict[str, float] = field(default_factory=dict)
    _tries: float = _TRIES
    _last: float = 0.0

    def fresh(self) -> str:
        """A new code such as ``K7QM-2XWD``."""
        signs = "".join(secrets.choice(_SIGNS) for _ in range(8))
        self._live = {digest: until for digest, until in self._live.items() if until > self.clock()}
        self._live[_hash(signs)] = self.clock() + self.valid_s
        return f"{signs[:4]}-{signs[4:]}"

    def redeem(self, text: str) -> bool | TooManyTries:
        """Whether the text is a live code; it is used up. Every wrong one costs a try."""
        self._refill()
        if self._tries < 1:
            return TooManyTries(_REFILL_S)
        until = self._live.pop(_hash("".join(c for c in text.upper() if c in _SIGNS)), None)
        if until is not None and until > self.clock():
            return True
        self._tries -= 1
        return False

    def _refill(self) -> None:
        now = self.clock()
        self._tries = min(_TRIES, self._tries + (now - self._last) / _REFILL_S)
        self._last = now


@dataclass
class Sessions:
    """Signed-in browsers, by the hash of their cookie. Kept in a file: a restart signs nobody out.

    ``clock`` is unix seconds.
    """

    file: Path
    clock: Callable[[], float]
    valid_s: float
    _live: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self._live = msgspec.json.decode(self.file.read_bytes(), type=dict[str, float])
        except (FileNotFoundError, msgspec.DecodeError):
            self._live = {}  # nobody is signed in; a damaged file only costs a new sign-in

    def open(self) -> str:
        """A new session's secret."""
        secret = secrets.token_urlsafe(32)
        self._live[_hash(secret)] = self.clock() + self.valid_s
        self._save()
        return secret

    def holds(self, secret: str) -> bool:
        """Whether the secret belongs to a live session."""
        return self._live.get(_hash(secret), 0.0) > self.clock()

    def close(self, secret: str) -> None:
        """End the session."""
        if self._live.pop(_hash(secret), None) is not None:
            self._save()

    def _save(self) -> None:
        self._live = {digest: until for digest, until in self._live.items() if until > self.clock()}
        write_private(self.file, msgspec.json.encode(self._live))


@dataclass(frozen=True)
class Tokens:
    """The two bearer tokens of a box: ``api`` for its administrator, ``app`` for programs that bring data."""

    api: str
    app: str

    def actor(self, given: str) -> Actor | None:
        """Who holds the token."""
        # Compared as bytes: a header may carry any Latin-1 text.
        for known, actor in ((self.api, Actor("admin", Scope.FULL)), (self.app, Actor("app", Scope.INTAKE))):
            if hmac.compare_digest(given.encode(), known.encode()):
                return actor
        return None


def ensure_tokens(folder: Path) -> Tokens:
    """The box's tokens, made on first use (files of mode 0600)."""
    return Tokens(_ensure_token(folder / "api"), _ensure_token(folder / "app"))


def _ensure_token(path: Path) -> str:
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32).encode())
    return path.read_text(encoding="ascii").strip()


def write_private(path: Path, data: bytes) -> None:
    """Replace a file atomically; only its owner can read it, from its first byte on."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


@dataclass(frozen=True)
class Doors:
    """Under which names the console may be asked for, and from which pages it may be changed.

    The host list stops DNS rebinding (a foreign name that resolves to this box); the origin check stops a
    foreign page from posting with the browser's cookie.
    """

    hosts: frozenset[str]

    def host_allowed(self, host: str) -> bool:
        """Whether the ``Host`` header names this console."""
        return _without_port(host) in self.hosts

    def origin_allowed(self, origin: str | None, host: str, actor: Actor | None) -> bool:
        """Whether a changing request comes from our own page, or from a program (which sends no origin)."""
        if origin is None:
            return actor is None or not actor.cookie
        scheme, separator, rest = origin.partition("://")
        return bool(separator) and scheme in {"http", "https"} and rest.lower() == host.lower()


def doors(bound: str, further: Iterable[str]) -> Doors:
    """The doors of a console bound to an address."""
    names = {"127.0.0.1", "localhost", "[::1]", bound, *further}
    return Doors(frozenset(name.lower() for name in names if name not in {"0.0.0.0", "::"}))  # noqa: S104 - excluded


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
