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


from landreeve_agent.serving import errors
from landreeve_agent.serving.http import DEFAULT_BODY_BYTES, JSON_TYPE, Connections, Request, Response, Send
from landreeve_agent.serving.infer import ENCODE, RETRY_AFTER, InferDoor, error_response, refuse
from landreeve_agent.serving.metrics import CONTENT_TYPE, Metrics
from landreeve_agent.serving.model import LoadedModel
from landreeve_agent.serving.routes import Routes, Serving

BACKLOG = 512
SWEEP_S = 5.0


class InferenceServer:
    """Serves the routes on a listening socket. Owned by the event loop."""

    def __init__(self, routes: Routes, metrics: Metrics, max_body_bytes: int = DEFAULT_BODY_BYTES) -> None:
        self._routes = routes
        self._metrics = metrics
        self._connections = Connections(self.handle, refuse, max_body_bytes)
        self._door = InferDoor(routes)
        self._server: asyncio.Server | None = None

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
                self._door.infer(request, send)
            elif request.method in ("GET", "HEAD"):
                send(self._read(request.path))
            else:
                send(error_response(errors.MethodError(f"method {request.method}: use GET, or POST for …/infer")))
        except errors.ServingError as error:
            send(error_response(error))
        except Exception as error:  # noqa: BLE001 - a defect of ours: this caller gets 500, the others go on
            traceback.print_exc()
            send(refuse(500, f"internal error: {type(error).__name__}; the worker's log has the details"))

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


def _version(parts: list[str]) -> str | None:
    return parts[4] if len(parts) > 4 else None


def _json(document: object) -> Response:
    return Response(200, ENCODE(document))


def _ready(document: object, ready: bool) -> Response:
    return Response(200 if ready else 503, ENCODE(document), JSON_TYPE, b"" if ready else RETRY_AFTER)


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
    tensors = [*model.definition.tensors] if not model.definition.tabular else inputs
    return {"inputs": tensors, "outputs": [*model.interface.outputs]}


def rss_bytes() -> int:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # other systems: the peak is the best they tell
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()
