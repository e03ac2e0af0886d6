"""The inference API: paths to routes, errors to statuses. Start here to read the worker.

``/v2`` · ``/v2/health/live|ready`` · ``/v2/models/{m}[/versions/{v}][/ready|stats]`` · ``POST …/infer`` · ``/metrics``
· ``POST /v2/repository/index`` · ``POST /v2/repository/models/{m}/load|unload``: the Open Inference Protocol over
REST, with the binary tensor, repository and statistics extensions. Beyond the box itself, over TLS and with a token.
"""

import asyncio
import functools
import socket
import ssl
import traceback
from collections.abc import Coroutine
from importlib.metadata import version as installed_version
from typing import Any
from urllib.parse import unquote

from landreeve_agent.serving import errors
from landreeve_agent.serving.access import Access
from landreeve_agent.serving.columns import MATRIX
from landreeve_agent.serving.heads import Head
from landreeve_agent.serving.http import DEFAULT_BODY_BYTES, JSON_TYPE, Connections, Request, Response, Send
from landreeve_agent.serving.infer import ENCODE, RETRY_AFTER, InferDoor, error_response, refuse
from landreeve_agent.serving.memory import rss_bytes
from landreeve_agent.serving.metrics import CONTENT_TYPE, Metrics
from landreeve_agent.serving.model import LoadedModel
from landreeve_agent.serving.repository import Repository, wants_ready
from landreeve_agent.serving.routes import Routes, Serving

BACKLOG = 512
SWEEP_S = 5.0
HANDSHAKE_S = 10.0
EXTENSIONS = ("binary_tensor_data", "model_repository", "statistics")
_REPOSITORY = "/v2/repository/"


class InferenceServer:
    """Serves the routes on a listening socket. Owned by the event loop."""

    def __init__(
        self,
        routes: Routes,
        metrics: Metrics,
        repository: Repository,
        access: Access,
        *,
        tls: ssl.SSLContext | None = None,
        max_body_bytes: int = DEFAULT_BODY_BYTES,
    ) -> None:
        self._routes = routes
        self._metrics = metrics
        self._repository = repository
        self._tls = tls
        admit = functools.partial(_admit, access) if access.tokens else None
        self._connections = Connections(self.handle, refuse, max_body_bytes, admit=admit)
        self._door = InferDoor(routes)
        routes.alone = lambda: len(self._connections.open) <= 1
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Accept connections on a socket that somebody else bound: it outlives this process."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connections.protocol,
            sock=listening,
            backlog=BACKLOG,
            ssl=self._tls,
            ssl_handshake_timeout=HANDSHAKE_S if self._tls else None,
        )
        loop.call_later(SWEEP_S, self._sweep, loop)

    async def leave(self, patience_s: float) -> None:
        """Another process answers on the same socket: accept no more, and end each connection after its next answer,
        so that no request meets a closed door. What stays idle for ``patience_s`` is closed."""
        if self._server is None:
            return
        self._server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        self._connections.leaving = True
        while self._connections.open and loop.time() < deadline:  # noqa: ASYNC110 - the hot path keeps no events
            await asyncio.sleep(0.02)
        self._connections.drain()
        while self._connections.busy and loop.time() < deadline + patience_s:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)

    async def stop(self, drain_s: float) -> None:
        """Accept no more; give what is being answered a moment to finish."""
        if self._server is None:
            return
        self._server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_s
        self._connections.drain()
        while self._connections.open and loop.time() < deadline:
            await asyncio.sleep(0.02)
            self._connections.drain()

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._connections.sweep(loop.time())
        loop.call_later(SWEEP_S, self._sweep, loop)

    def handle(self, request: Request, send: Send) -> None:
        """Answer one request; never raises."""
        try:
            head = request.head
            if head.method == "POST":
                if head.known is None and head.path.startswith(_REPOSITORY):
                    self._order(request, send)
                else:
                    self._door.infer(request, send)
            elif head.method in ("GET", "HEAD"):
                send(self._read(head.path))
            else:
                send(error_response(errors.MethodError(f"method {head.method}: use GET, or POST for …/infer")))
        except errors.ServingError as error:
            send(error_response(error))
        except Exception as error:  # noqa: BLE001 - a defect of ours: this caller gets 500, the others go on
            traceback.print_exc()
            send(refuse(500, f"internal error: {type(error).__name__}; the worker's log has the details"))

    # --- POST /v2/repository

    def _order(self, request: Request, send: Send) -> None:
        _refuse_pages(request.head)
        match [unquote(part) for part in request.path.rstrip("/").split("/")[3:]]:
            case ["index"]:
                send(_json(self._repository.index(ready=wants_ready(request.body))))
            case ["models", model, "load"]:
                self._start(_answered(self._repository.load(model), send))
            case ["models", model, "unload"]:
                self._start(_answered(self._repository.unload(model), send))
            case _:
                raise errors.UnknownError(
                    f"path {request.path[:200]!r}: there are index, models/{{m}}/load and /unload"
                )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- GET

    def _read(self, path: str) -> Response:
        match [unquote(part) for part in path.rstrip("/").split("/")[1:]]:
            case ["v2"]:
                version = installed_version("landreeve")
                return _json({"name": "landreeve", "version": version, "extensions": EXTENSIONS})
            case ["v2", "health", "live"]:
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                ready = all(serving.active for serving in self._routes.table.values())
                return _ready({"ready": ready}, ready)
            case ["v2", "models", *rest]:
                return self._read_model(path, rest)
            case ["metrics"]:
                return Response(200, self._exposition(), CONTENT_TYPE.encode())
            case _:
                raise errors.UnknownError(f"path {path[:200]!r}: nothing is here; the API begins at /v2")

    def _read_model(self, path: str, rest: list[str]) -> Response:
        match rest:
            case []:
                return _json({"models": sorted(self._routes.table)})
            case ["stats"]:
                return _json({"model_stats": self._repository.statistics()})
            case [*_, "infer"]:
                raise errors.MethodError(f"{path[:200]}: use POST")
            case [model]:
                return _json(_metadata(self._serving(model, None)))
            case [model, "ready"] | [model, "versions", _, "ready"]:
                ready = self._serving(model, _version(rest)).active is not None
                return _ready({"name": model, "ready": ready}, ready)
            case [model, "stats"] | [model, "versions", _, "stats"]:
                self._serving(model, _version(rest))
                return _json({"model_stats": self._repository.statistics(model)})
            case [model, "versions", version]:
                return _json(_metadata(self._serving(model, version), version))
            case _:
                raise errors.UnknownError(f"path {path[:200]!r}: nothing is here; the API begins at /v2")

    def _serving(self, model: str, version: str | None) -> Serving:
        found = self._routes.serving(model)
        there = _versions(found)
        if version is not None and version not in there:
            raise errors.UnknownError(
                f"version {version[:40]!r} of model {model!r} is not served here; there is: {', '.join(there)}"
            )
        return found

    def _exposition(self) -> bytes:
        self._metrics.bad_http = self._connections.broken
        waiting = {name: s.active.batcher.waiting for name, s in self._routes.table.items() if s.active}
        return (self._metrics.text(rss_bytes(), waiting) + self._repository.exposition()).encode()


def _admit(access: Access, headers: dict[bytes, bytes], path: str) -> Response | None:
    refusal = access.refuses(headers, path)
    return None if refusal is None else error_response(refusal)


def _refuse_pages(head: Head) -> None:
    if b"origin" in head.headers:
        raise errors.ForbiddenError("origin: web pages may not call the inference API; call it from your application")


async def _answered(work: Coroutine[Any, Any, None], send: Send) -> None:
    try:
        await work
    except errors.ServingError as error:
        send(error_response(error))
    except Exception as error:  # noqa: BLE001 - as in `InferenceServer.handle`
        traceback.print_exc()
        send(refuse(500, f"internal error: {type(error).__name__}; the worker's log has the details"))
    else:
        send(_json({}))


def _version(rest: list[str]) -> str | None:
    return rest[2] if rest[1] == "versions" else None


def _versions(serving: Serving) -> list[str]:
    """The versions that answer, the active one first."""
    return [serving.route.active.version, *[share.version.version for share in serving.route.shares]]


def _json(document: object) -> Response:
    return Response(200, ENCODE(document))


def _ready(document: object, ready: bool) -> Response:
    return Response(200 if ready else 503, ENCODE(document), JSON_TYPE, b"" if ready else RETRY_AFTER)


def _metadata(serving: Serving, name: str | None = None) -> dict[str, object]:
    lane = serving.active if name is None or serving.active is None else serving.named(name)
    version = serving.route.active if lane is None else lane.model.version
    parameters: dict[str, object] = {"release": version.release}
    document: dict[str, object] = {
        "name": version.model,
        "versions": _versions(serving),
        "platform": "onnx",
        "parameters": parameters,
    }
    if lane is not None:
        document |= _tensors(lane.model)
        if lane.model.definition.tabular:
            parameters["matrix"] = _matrix(lane.model)
    return document


def _matrix(model: LoadedModel) -> dict[str, object]:
    """What the one-tensor form of a request holds: the columns in order, and the texts that a category's ranks mean."""
    columns = model.interface.columns
    ranks = {rule.name: rule.texts for rule in columns if rule.column.kind == "category"}
    return {"name": MATRIX, "columns": [rule.name for rule in columns], "categories": ranks}


def _tensors(model: LoadedModel) -> dict[str, object]:
    inputs = [
        {"name": c.name, "datatype": "FP64" if c.kind == "number" else "BYTES", "shape": [-1]} for c in model.columns
    ]
    tensors = [*model.definition.tensors] if not model.definition.tabular else inputs
    return {"inputs": tensors, "outputs": [*model.interface.outputs]}
