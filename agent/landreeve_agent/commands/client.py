"""The running supervisor, asked over its local API by the command line."""

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from landreeve.cli import Exit, fail

from landreeve_agent.config import StateFolder

TIMEOUT_S = 30.0
_EXITS = {401: Exit.AUTH, 403: Exit.AUTH, 404: Exit.NOT_FOUND, 409: Exit.CONFLICT, 413: Exit.USAGE, 422: Exit.USAGE}


class NotRunningError(Exception):
    """No supervisor answers on this state folder; the text says how to start one."""


@dataclass(frozen=True)
class LocalClient:
    """Calls the API with the box's own token; every refusal ends the program with its reason and exit code."""

    host: str
    port: int
    token: str

    def get(self, path: str) -> Any:
        """GET a document."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """POST a document."""
        return self._call("POST", path, body)

    def get_bytes(self, path: str) -> bytes:
        """GET a file."""
        return self._fetch("GET", path, None)

    def _call(self, method: str, path: str, body: Any) -> Any:
        data = self._fetch(method, path, body)
        return json.loads(data) if data else None

    def _fetch(self, method: str, path: str, body: Any) -> bytes:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        try:
            connection.request(method, f"/api/v1{path}", None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            data = answer.read()
        except TimeoutError:
            fail(Exit.TIMEOUT, f"no answer from {self.host}:{self.port} within {TIMEOUT_S:.0f} s")
        except (OSError, http.client.HTTPException) as error:
            fail(Exit.UNREACHABLE, f"{self.host}:{self.port}: {error}; is it running? Start it: landreeve run")
        finally:
            connection.close()
        if answer.status >= 400:
            _refused(answer.status, data)
        return data


def connect(state: StateFolder) -> LocalClient:
    """The supervisor of a state folder; `NotRunningError` when none is there."""
    try:
        ports = json.loads(state.ports.read_bytes())
        token = (state.tokens / "api").read_text(encoding="ascii").strip()
        return LocalClient(str(ports["host"]), int(ports["console"]), token)
    except PermissionError as error:
        fail(Exit.AUTH, f"{error.filename}: {error.strerror}; use the account the agent runs as")
    except (OSError, ValueError, KeyError) as error:
        raise NotRunningError(f"no agent runs on {state.root}; start it: landreeve run") from error


def connected(state: StateFolder) -> LocalClient:
    """The same for a command that needs it: ends the program when there is none."""
    try:
        return connect(state)
    except NotRunningError as error:
        fail(Exit.UNREACHABLE, str(error))


def wait_until(client: LocalClient, path: str, done: tuple[str, ...], timeout_s: float) -> dict[str, Any]:
    """Ask until the document's ``state`` is one of ``done``."""
    deadline = time.monotonic() + timeout_s
    while True:
        document: dict[str, Any] = client.get(path)
        if document["state"] in done:
            return document
        if time.monotonic() > deadline:
            fail(Exit.TIMEOUT, f"still {document['state']} after {timeout_s:.0f} s; it goes on without this command")
        time.sleep(0.5)


def _refused(status: int, data: bytes) -> NoReturn:
    try:
        problem = json.loads(data)
        text = problem.get("detail") or problem.get("title") or str(problem)
    except ValueError:
        text = data[:300].decode(errors="replace")
    fail(_EXITS.get(status, Exit.FAILURE), str(text))


def is_running(state: StateFolder) -> bool:
    """Whether a supervisor answers on this state folder."""
    from landreeve_agent.lock import is_held

    try:
        connect(state)
    except NotRunningError:
        return False
    return is_held(state.run / "lock")
