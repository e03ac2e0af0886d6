"""Requests to one registry of others: authentication, redirects, and what is never sent where.

Credentials go to the registry itself and to the token service it names, and only over TLS (or to this machine).
Redirects are followed for reading, without credentials once the host is another, and never from TLS to plain HTTP.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import msgspec

from landreeve_hub.errors import RegistryAuthError, RegistryAwayError, RegistryError, RegistryMissingError
from landreeve_hub.exchange.credentials import Login

TIMEOUT_S = 60.0
MAX_REDIRECTS = 5
MAX_ANSWER_BYTES = 1024 * 1024
_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"([^"]*)"|([^\s,]+))')
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Doorway:
    """The way to one registry. Use it as a context manager; errors are `RegistryError` and its kinds."""

    def __init__(
        self,
        registry: str,
        login: Login | None = None,
        *,
        plain_http: bool = False,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        host = urlsplit(f"//{registry}").hostname or ""
        self.registry = registry
        self._plain = plain_http or is_loopback(host)
        self.base = f"{'http' if self._plain else 'https'}://{registry}"
        self._login = login
        self._bearer: dict[str, str] = {}
        self._basic = False
        # identity: what is unpacked on the way could be any size. Cookies and proxies' logins are none of ours.
        headers = {"User-Agent": "landreeve-hub", "Accept-Encoding": "identity"}
        self._client = httpx2.Client(headers=headers, timeout=TIMEOUT_S, follow_redirects=False, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    @contextmanager
    def ask(self, method: str, url: str, scope: str, **more: Any) -> Iterator[httpx2.Response]:
        """The answer to a request, its body unread. ``url`` may be a path of the registry; ``scope`` is what a token
        is asked for, such as ``repository:demand:pull``."""
        target = self.absolute(url)
        answer = self._send(method, target, scope, more)
        if answer.status_code == 401 and self._prove(answer, scope):
            answer.close()
            answer = self._send(method, target, scope, more)
        try:
            hops = 0
            while answer.status_code in _REDIRECTS and method in {"GET", "HEAD"}:
                hops += 1
                if hops > MAX_REDIRECTS:
                    raise RegistryError(f"{self.registry}: redirects more than {MAX_REDIRECTS} times")
                target = self._next(target, answer)
                answer.close()
                answer = self._send(method, target, scope, more)
            yield answer
        finally:
            answer.close()

    def absolute(self, url: str) -> str:
        """A URL of the registry's own; others only where they are asked for by redirects."""
        return url if "://" in url else self.base + url

    def check(self, answer: httpx2.Response, what: str, *fine: int) -> None:
        """`RegistryError` unless the status is one of ``fine``, with what the registry says of it."""
        status = answer.status_code
        if status in fine:
            return
        said = _said(answer)
        if status in {401, 403}:
            hint = (
                "log in with --registry-user and LANDREEVE_REGISTRY_PASSWORD"
                if self._login is None
                else "check the login"
            )
            raise RegistryAuthError(f"{self.registry}: {what}: not allowed ({status}{said}); {hint}")
        if status == 404:
            raise RegistryMissingError(f"{self.registry}: {what}: not there{said}")
        raise RegistryError(f"{self.registry}: {what}: answered {status}{said}")

    def _send(self, method: str, url: str, scope: str, more: dict[str, Any]) -> httpx2.Response:
        headers = dict(more.get("headers", {}))
        if self._is_own(url) and (proof := self._proof(scope)):
            headers["Authorization"] = proof
        rest = {name: value for name, value in more.items() if name != "headers"}
        try:
            request = self._client.build_request(method, url, headers=headers, **rest)
            return self._client.send(request, stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RegistryAwayError(f"{self.registry}: does not answer: {type(error).__name__}: {error}") from error

    def _is_own(self, url: str) -> bool:
        mine, theirs = urlsplit(self.base), urlsplit(url)
        return (mine.scheme, mine.netloc) == (theirs.scheme, theirs.netloc)

    def _proof(self, scope: str) -> str:
        if self._login is not None and self._login.token:
            return f"Bearer {self._login.token}"
        if scope in self._bearer:
            return f"Bearer {self._bearer[scope]}"
        return self._login.basic if self._login is not None and self._basic else ""

    def _next(self, url: str, answer: httpx2.Response) -> str:
        target = str(httpx2.URL(url).join(answer.headers.get("location", "")))
        parts = urlsplit(target)
        if parts.scheme != "https" and not (self._plain and parts.scheme == "http"):
            raise RegistryError(f"{self.registry}: redirects to {parts.scheme}://{parts.hostname}, which is not TLS")
        if parts.username or parts.password:
            raise RegistryError(f"{self.registry}: redirects to a URL with a login in it")
        return target

    def _prove(self, answer: httpx2.Response, scope: str) -> bool:
        """Answer a challenge; whether there is something new to try."""
        for challenge in answer.headers.get_list("www-authenticate"):
            kind, _, rest = challenge.strip().partition(" ")
            if kind.lower() == "bearer" and not (self._login and self._login.token):
                told = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
                self._bearer[scope] = self._token(told, scope)
                return True
            if kind.lower() == "basic" and self._login is not None and self._login.user and not self._basic:
                self._basic = True
                return True
        return False

    def _token(self, told: dict[str, str], scope: str) -> str:
        realm = urlsplit(told.get("realm", ""))
        trusted = realm.scheme == "https" or (
            realm.scheme == "http" and self._plain and self._near(realm.hostname or "")
        )
        if not trusted or realm.username:
            raise RegistryAuthError(
                f"{self.registry}: names the token service {told.get('realm', '')[:120]!r}: not TLS"
            )
        query = {"scope": scope} | ({"service": told["service"]} if "service" in told else {})
        headers = {"Authorization": self._login.basic} if self._login is not None and self._login.user else {}
        try:
            with self._client.stream("GET", told["realm"], params=query, headers=headers) as answer:
                self.check(answer, "asking for a token", 200)
                data = read_limited(answer, MAX_ANSWER_BYTES, f"{realm.hostname}: the token service's answer")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RegistryAwayError(f"{realm.hostname}: the token service does not answer: {error}") from error
        try:
            document = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryError(f"{realm.hostname}: the token service answers with no JSON: {error}") from error
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise RegistryAuthError(f"{realm.hostname}: the token service gave no token")
        return token

    def _near(self, host: str) -> bool:
        """Whether a plain token service is where the plain registry is."""
        return is_loopback(host) or host == urlsplit(self.base).hostname


def read_limited(answer: httpx2.Response, limit: int, what: str) -> bytes:
    """The whole body as it was sent; `RegistryError` past ``limit`` bytes."""
    data = bytearray()
    try:
        for chunk in (answer.content,) if answer.is_stream_consumed else answer.iter_raw():
            data += chunk
            if len(data) > limit:
                raise RegistryError(f"{what}: more than {limit} bytes")
    except httpx2.HTTPError as error:
        raise RegistryAwayError(f"{what}: broke off: {type(error).__name__}") from error
    return bytes(data)


def _said(answer: httpx2.Response) -> str:
    """What the registry says went wrong, for a sentence; empty when it says nothing we can read."""
    try:
        errors = msgspec.json.decode(read_limited(answer, MAX_ANSWER_BYTES, "it"), type=dict[str, Any])["errors"]
        words = f"{errors[0].get('code', '')}: {errors[0].get('message', '')}"
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    except (RegistryError, httpx2.HTTPError, httpx2.StreamError):
        return ""
    return ", " + "".join(c for c in words if c.isprintable())[:200]
