"""The command line's way to the hub: its public API, and exit codes that say what went wrong."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landreeve.cli import Exit, fail, note

if TYPE_CHECKING:
    import httpx2

_EXITS = {401: Exit.AUTH, 403: Exit.AUTH, 404: Exit.NOT_FOUND, 409: Exit.CONFLICT, 422: Exit.USAGE, 429: Exit.AUTH}
TIMEOUT_S = 30.0
UPLOAD_TIMEOUT_S = 600.0
AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class _Silence:
    """No answer, and how the command ends when none comes."""

    code: Exit
    text: str


@dataclass(frozen=True, slots=True)
class Hub:
    """Calls of ``/api/v1`` with a bearer token; a problem ends the command with its sentence. A hub that does
    not answer is asked again for ``away_s``."""

    url: str
    token: str
    away_s: float = 0.0

    def get(self, path: str, **query: str) -> Any:
        """The JSON of an answer."""
        return self._call("GET", path, params=query).json()

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S) -> Any:
        """The JSON of an answer; the call is safe to repeat by the network."""
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        answer = self._call("POST", path, json=dict(body or {}), headers=headers, timeout=timeout_s)
        return answer.json() if answer.content else {}

    def post_bytes(self, path: str, data: bytes) -> Any:
        """The JSON of an answer to a file of JSON, sent as it is."""
        return self._call("POST", path, content=data, headers={"Content-Type": "application/json"}).json()

    def delete(self, path: str) -> Any:
        """The JSON of an answer, if it has any."""
        answer = self._call("DELETE", path)
        return answer.json() if answer.content else {}

    def upload(self, path: str, archive: bytes) -> Any:
        """Send a release folder as a tar."""
        headers = {"Content-Type": "application/x-tar"}
        return self._call("POST", path, content=archive, headers=headers, timeout=UPLOAD_TIMEOUT_S).json()

    def download(self, path: str) -> bytes:
        """The bytes of an answer."""
        return self._call("GET", path, timeout=UPLOAD_TIMEOUT_S).content

    def _call(self, method: str, path: str, **more: Any) -> "httpx2.Response":
        until = time.monotonic() + self.away_s
        while isinstance(answer := self._ask(method, path, **more), _Silence):
            if time.monotonic() >= until:
                fail(answer.code, answer.text)
            note(f"{answer.text} Asking again.")
            time.sleep(AGAIN_S)
        if answer.status_code >= 400:
            fail(_EXITS.get(answer.status_code, Exit.FAILURE), _detail(answer))
        return answer

    def _ask(self, method: str, path: str, **more: Any) -> "httpx2.Response | _Silence":
        import httpx2

        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        timeout = more.pop("timeout", TIMEOUT_S)
        url = f"{self.url.rstrip('/')}/api/v1/{path}"
        try:
            return httpx2.request(method, url, headers=headers, timeout=timeout, **more)
        except httpx2.TimeoutException:
            return _Silence(Exit.TIMEOUT, f"the hub at {self.url} did not answer within {timeout:.0f} s.")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            text = f"no hub answers at {self.url}: {error}. Is it running (landreeve-hub serve)?"
            return _Silence(Exit.UNREACHABLE, text)


def _detail(answer: "httpx2.Response") -> str:
    try:
        document = answer.json()
    except ValueError:
        document = {}
    detail = document.get("detail") if isinstance(document, dict) else None
    return str(detail or f"the hub answered HTTP {answer.status_code}")


def connect(url: str, token: str, state: Path | None) -> Hub:
    """The hub of ``--url`` and ``--token``, or of ``--state``; what is given explicitly counts first."""
    if state is not None:
        url = url or _address(state)
        token = token or _admin_token(state)
    if not url or not token:
        fail(
            Exit.USAGE,
            "which hub? give --url and --token, or --state with the hub's state folder; "
            "or set LANDREEVE_HUB_URL and LANDREEVE_HUB_TOKEN, or LANDREEVE_HUB_STATE",
        )
    return Hub(url, token)


def _address(state: Path) -> str:
    path = state / "run" / "ports.json"
    try:
        ports = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(Exit.UNREACHABLE, f"{path}: not readable ({error}). Is the hub of this state folder running?")
    if url := ports.get("url") or ports.get("http_url"):
        return str(url)
    port = ports.get("http") or ports.get("http_port")
    if not port:
        fail(Exit.UNREACHABLE, f"{path}: names no HTTP port")
    return f"http://127.0.0.1:{port}"


def _admin_token(state: Path) -> str:
    path = state / "run" / "admin-token"
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        fail(Exit.AUTH, f"{path}: not readable ({error}). Give --token, or run this as the user the hub runs as.")
