"""The inference API: paths to routes, errors to statuses. Start here to read the worker.

``/v2`` · ``/v2/health/live|ready`` · ``/v2/models/{m}[/versions/{v}][/ready]`` · ``POST …/infer`` · ``/metrics``:
the Open Inference Protocol over REST, with the binary tensor extension.
"""

import asyncio
import resource
import socket
import traceback
from importlib.metadata import version as installed_version
from pathlib import Path
from urllib.parse import unquote

import msgspec

from landreeve_agent.serving import errors
from landreeve_agent.serving.http import DEFAULT_BODY_BYTES, JSON_TYPE, Connections, Request, Response, Send
from landreeve_agent.serving.metrics import CONTENT_TYPE, Metrics
from landreeve_agent.serving.model import LoadedModel
from landreeve_agent.serving.routes import Answer, Routes, Serving

BACKLOG = 512
SWEEP_S = 5.0
RETRY_AFTER = b"retry-after: 1\r\n"
_BINARY_TYPE = b"application/octet-stream"
# Most specific class first: a subclass must not be caught by its parent's status.
_STATUSES: tuple[tuple[type[errors.ServingError], int, bytes], ...] = (
    (errors.TooLargeError, 413, b""),
    (errors.BadRequestError, 400, b""),
    (errors.UnsupportedError, 415, b""),
    (errors.MethodError, 405, b"allow: GET, HEAD, POST\r\n"),
    (errors.ForbiddenError, 403, b""),
    (errors.UnknownError, 404, b""),
    (errors.BusyError, 429, RETRY_AFTER),
    (errors.NotReadyError, 503, RETRY_AFTER),
)
_ENCODE = msgspec.json.Encoder().encode


def error_response(error: errors.ServingError) -> Response:
    """``{"error": "…"}`` with the status of the error's class; 500 for what is not the caller's fault."""
    body = _ENCODE({"error": str(error)})
    for kind, status, headers in _STATUSES:
        if isinstance(error, kind):
            return Response(status, body, headers=headers)
    return Response(500, body)


def _refuse(status: int, text: str) -> Response:
    return Response(status, _ENCODE({"error": text}))


class InferenceServer:
    """Serves the routes on a listening socket. Owned by the event loop."""

    def __init__(self, routes: Routes, metrics: Metrics, max_body_bytes: int = DEFAULT_BODY_BYTES) -> None:
        self._routes = routes
        self._metrics = metrics
        self._connections = Connections(self.handle, _refuse, max_body_bytes)
        self._server: asyncio.Server | None = None
        self._infer_paths: dict[str, tuple[str, str | None]] = {}

    async def start(self, listening: socket.socket) -> None:
        """Accept connections on a socket that somebody else bound: it outlives this process."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connections.protocol, sock=listening, backlog=BACKLOG)
        loop.call_later(SWEEP_S, self._sweep, loop)

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
            if request.method == "POST":
                self._infer(request, send)
            elif request.method in ("GET", "HEAD"):
                send(self._read(request.path))
            else:
                send(error_response(errors.MethodError(f"method {request.method}: use GET, or POST for …/infer")))
        except errors.ServingError as error:
            send(error_response(error))
        except Exception as error:  # noqa: BLE001 - a defect of ours: this caller gets 500, the others go on
            traceback.print_exc()
            send(_refuse(500, f"internal error: {type(error).__name__}; the worker's log has the details"))

    # --- POST /v2/models/{m}[/versions/{v}]/infer

    def _infer(self, request: Request, send: Send) -> None:
        headers = request.headers
        if b"origin" in headers:
            # A page in a browser on this box must not feed or ask the site's models; applications send no Origin.
            raise errors.ForbiddenError(
                "origin: web pages may not call the inference API; call it from your application"
            )
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise errors.UnsupportedError("content-encoding: send the body uncompressed")
        target = self._infer_paths.get(request.path) or self._parse_infer(request.path)
        json_bytes = _length(headers.get(b"inference-header-content-length"))

        def respond(answer: Answer | errors.ServingError) -> None:
            send(_answer_response(answer) if isinstance(answer, Answer) else error_response(answer))

        self._routes.infer(*target, request.body, json_bytes, respond)

    def _parse_infer(self, path: str) -> tuple[str, str | None]:
        match [unquote(part) for part in path.split("/")[1:]]:
            case ["v2", "models", model, "infer"]:
                target: tuple[str, str | None] = (model, None)
            case ["v2", "models", model, "versions", version, "infer"]:
                target = (model, version)
            case ["v2", *_] | ["metrics"]:
                raise errors.MethodError(f"{path[:200]}: only /v2/models/{{model}}/infer takes POST")
            case _:
                raise errors.UnknownError(f"path {path[:200]!r}: nothing is here; the API begins at /v2")
        if len(self._infer_paths) < 1024:  # bounded: a stranger may ask for any number of paths
            self._infer_paths[path] = target
        return target

    # --- GET

    def _read(self, path: str) -> Response:
        match [unquote(part) for part in path.rstrip("/").split("/")[1:]]:
            case ["v2"]:
                return _json(
                    {
                        "name": "landreeve",
                        "version": installed_version("landreeve"),
                        "extensions": ["binary_tensor_data"],
                    }
                )
            case ["v2", "health", "live"]:
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                ready = all(serving.active for serving in self._routes.table.values())
                return _ready({"ready": ready}, ready)
            case ["v2", "models"]:
                return _json({"models": sorted(self._routes.table)})
            case ["v2", "models", model] | ["v2", "models", model, "versions", _] as parts:
                return _json(_metadata(self._routes.serving(model, _version(parts))))
            case ["v2", "models", model, "ready"] | ["v2", "models", model, "versions", _, "ready"] as parts:
                ready = self._routes.serving(model, _version(parts)).active is not None
                return _ready({"name": model, "ready": ready}, ready)
            case ["metrics"]:
                return Response(200, self._exposition(), CONTENT_TYPE.encode())
            case [*_, "infer"]:
                raise errors.MethodError(f"{path[:200]}: use POST")
            case _:
                raise errors.UnknownError(f"path {path[:200]!r}: nothing is here; the API begins at /v2")

    def _exposition(self) -> bytes:
        self._metrics.bad_http = self._connections.broken
        waiting = {name: s.active.batcher.waiting for name, s in self._routes.table.items() if s.active}
        return self._metrics.text(rss_bytes(), waiting).encode()


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise errors.BadRequestError(f"Inference-Header-Content-Length: {value[:40]!r} is no number of bytes")
    return int(value)


def _answer_response(answer: Answer) -> Response:
    if answer.json_bytes is None:
        return Response(200, answer.body)
    return Response(200, answer.body, _BINARY_TYPE, b"inference-header-content-length: %d\r\n" % answer.json_bytes)


def _version(parts: list[str]) -> str | None:
    return parts[4] if len(parts) > 4 else None


def _json(document: object) -> Response:
    return Response(200, _ENCODE(document))


def _ready(document: object, ready: bool) -> Response:
    return Response(200 if ready else 503, _ENCODE(document), JSON_TYPE, b"" if ready else RETRY_AFTER)


def _metadata(serving: Serving) -> dict[str, object]:
    version = serving.route.active
    document: dict[str, object] = {
        "name": version.model,
        "versions": [version.version],
        "platform": "onnx",
        "parameters": {"release": version.release},
    }
    if serving.active is not None:
        document |= _tensors(serving.active.model)
    return document


def _tensors(model: LoadedModel) -> dict[str, object]:
    inputs = [
        {"name": c.name, "datatype": "FP64" if c.kind == "number" else "BYTES", "shape": [-1]} for c in model.columns
    ]
    return {"inputs": inputs, "outputs": [{"name": model.definition.output, "datatype": "FP32", "shape": [-1]}]}


def rss_bytes() -> int:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # other systems: the peak is the best they tell
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
