"""The worker's gRPC door: the Open Inference Protocol over the same routes as HTTP, with the same sentences.

grpcio is imported here and nowhere else, in the worker and only when the door is switched on. gRPC binds its port
itself; the supervisor keeps that port bound without listening, so every worker finds it free. Beyond the box itself
it speaks TLS and wants a token, as HTTP does (`landreeve_agent.serving.access`).
"""

import asyncio
import functools
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any, NoReturn

import grpc
import grpc.aio
from landreeve.release.manifest import TensorSpec

from landreeve_agent.serving import errors, grpc_codec
from landreeve_agent.serving.access import Access, is_loopback
from landreeve_agent.serving.grpc_messages import MESSAGES, SERVICE
from landreeve_agent.serving.model import LoadedModel
from landreeve_agent.serving.repository import Repository
from landreeve_agent.serving.routes import Answered, Routes, Serving

EXTENSIONS = ("model_repository",)
MAX_CALLS = 512  # under way at once; the next is refused with RESOURCE_EXHAUSTED
_OPEN = {f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady"}
_MARGIN_S = 0.001  # of a deadline, for the way back
# Most specific class first, as over HTTP.
_CODES: tuple[tuple[type[errors.ServingError], grpc.StatusCode], ...] = (
    (errors.BadRequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnsupportedError, grpc.StatusCode.UNIMPLEMENTED),
    (errors.UnauthorizedError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.UnknownError, grpc.StatusCode.NOT_FOUND),
    (errors.LateError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.BusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.NotReadyError, grpc.StatusCode.UNAVAILABLE),
)


@dataclass(frozen=True, slots=True)
class GrpcOptions:
    """Where to listen; ``certificate`` and ``key`` (PEM files) make it TLS. ``max_bytes`` bounds one request."""

    host: str
    port: int
    max_bytes: int
    certificate: str = ""
    key: str = ""


def status_of(error: errors.ServingError) -> grpc.StatusCode:
    """The gRPC status of an error's class; INTERNAL for what is not the caller's fault."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class GrpcDoor:
    """Serves the routes over gRPC. Owned by the event loop."""

    def __init__(self, routes: Routes, repository: Repository, access: Access, options: GrpcOptions) -> None:
        self._routes = routes
        self._repository = repository
        self._access = access
        self._options = options
        self._server: grpc.aio.Server | None = None
        self._under_way = 0
        others = routes.alone
        routes.alone = lambda: self._under_way <= 1 and others()

    async def start(self) -> int:
        """Listen; the port. `LoadFailedError` when it cannot be had, or would stand open to the network."""
        options = self._options
        if not is_loopback(options.host) and not (options.certificate and self._access.tokens):
            raise errors.LoadFailedError(
                "grpc_open", f"gRPC on {options.host}: beyond the box only over TLS with a token"
            )
        server = grpc.aio.server(
            interceptors=[_Guard(self._access)] if self._access.tokens else [],
            options=[
                ("grpc.so_reuseport", 0),  # or two workers would share the port, and one of them be deaf
                ("grpc.max_receive_message_length", options.max_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", MAX_CALLS),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        port = self._bind(server)
        await server.start()
        self._server = server
        return port

    async def stop(self, drain_s: float) -> None:
        """Accept no more; give what is being answered a moment to finish."""
        if self._server is not None:
            await self._server.stop(drain_s)

    def _bind(self, server: grpc.aio.Server) -> int:
        options = self._options
        host = f"[{options.host.strip('[]')}]" if ":" in options.host else options.host
        try:
            if options.certificate:
                pair = (Path(options.key).read_bytes(), Path(options.certificate).read_bytes())
                credentials = grpc.ssl_server_credentials([pair])
                return int(server.add_secure_port(f"{host}:{options.port}", credentials))
            return int(server.add_insecure_port(f"{host}:{options.port}"))
        except (OSError, RuntimeError) as error:
            raise errors.LoadFailedError("grpc_port", f"gRPC on {host}:{options.port}: {error}") from error

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        unary = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                functools.partial(_answered, call),
                request_deserializer=MESSAGES[f"{name}Request"].FromString,
                response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
            )
            for name, call in unary.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._stream,
            request_deserializer=MESSAGES["ModelInferRequest"].FromString,
            response_serializer=MESSAGES["ModelStreamInferResponse"].SerializeToString,
        )
        return handlers

    # --- inference

    async def _infer(self, request: Any, context: Any) -> Any:
        began_ns = time.perf_counter_ns()
        model, version = request.model_name, request.model_version or None
        routes = self._routes
        interface = routes.interface(model, version)
        try:
            decoded = grpc_codec.decode(request, interface)
        except errors.BadRequestError:
            routes.refused(model)
            raise
        left_s = context.time_remaining()
        if left_s is not None:  # what cannot be answered in time is not begun
            left_us = max(int((left_s - _MARGIN_S) * 1e6), 1)
            decoded.timeout_us = min(decoded.timeout_us, left_us) if decoded.timeout_us else left_us
        self._under_way += 1
        try:
            answer = await _submitted(functools.partial(routes.submit, model, version, decoded), began_ns)
        finally:
            self._under_way -= 1
        if isinstance(answer, errors.ServingError):
            raise answer
        return grpc_codec.encode(answer, raw=bool(request.raw_input_contents))

    async def _stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests; a refusal ends nothing but its own request."""
        async for request in requests:
            response = MESSAGES["ModelStreamInferResponse"]()
            try:
                response.infer_response.CopyFrom(await self._infer(request, context))
            except errors.ServingError as error:
                response.error_message = str(error)
                response.infer_response.id = request.id
            yield response

    # --- health, metadata, repository

    async def _live(self, _request: Any, _context: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _ready(self, _request: Any, _context: Any) -> Any:
        ready = all(serving.active for serving in self._routes.table.values())
        return MESSAGES["ServerReadyResponse"](ready=ready)

    async def _model_ready(self, request: Any, _context: Any) -> Any:
        return MESSAGES["ModelReadyResponse"](ready=self._serving(request).active is not None)

    async def _server_metadata(self, _request: Any, _context: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](
            name="landreeve", version=installed_version("landreeve"), extensions=EXTENSIONS
        )

    async def _model_metadata(self, request: Any, _context: Any) -> Any:
        serving = self._serving(request)
        versions = [serving.route.active.version, *[share.version.version for share in serving.route.shares]]
        if serving.active is None:
            return grpc_codec.metadata(serving.route.model, versions, (), ())
        model = serving.active.model
        return grpc_codec.metadata(serving.route.model, versions, _inputs(model), model.interface.outputs)

    async def _index(self, request: Any, _context: Any) -> Any:
        response = MESSAGES["RepositoryIndexResponse"]()
        for entry in self._repository.index(ready=request.ready):
            response.models.add(name=entry.name, version=entry.version, state=entry.state, reason=entry.reason)
        return response

    async def _load(self, request: Any, _context: Any) -> Any:
        await self._repository.load(request.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, _context: Any) -> Any:
        await self._repository.unload(request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    def _serving(self, request: Any) -> Serving:
        return self._routes.serving(request.name, request.version or None)


async def _submitted(submit: Callable[..., Callable[[], None]], began_ns: int) -> Answered | errors.ServingError:
    """The answer to a request; when the caller leaves first, its run is not begun."""
    future: asyncio.Future[Answered | errors.ServingError] = asyncio.get_running_loop().create_future()

    def respond(answer: Answered | errors.ServingError) -> None:
        if not future.done():
            future.set_result(answer)

    leave = submit(respond, began_ns)
    try:
        return await future
    except asyncio.CancelledError:
        leave()
        raise


async def _answered(call: Callable[[Any, Any], Awaitable[Any]], request: Any, context: Any) -> Any:
    """A call's answer, or its refusal as a status with our sentence."""
    try:
        return await call(request, context)
    except errors.ServingError as error:
        await _refuse(context, error)
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as error:  # noqa: BLE001 - a defect of ours: this caller is told, the others go on
        traceback.print_exc()
        text = f"internal error: {type(error).__name__}; the worker's log has the details"
        await context.abort(grpc.StatusCode.INTERNAL, text)


async def _refuse(context: Any, error: errors.ServingError) -> NoReturn:
    trailing: tuple[tuple[str, str], ...] = ()
    if isinstance(error, errors.BusyError):
        trailing = (("grpc-retry-pushback-ms", str(1000 * error.retry_s)),)  # gRFC A6: when to try again
    await context.abort(status_of(error), str(error), trailing)
    raise AssertionError("abort returned")


def _inputs(model: LoadedModel) -> list[TensorSpec]:
    if not model.definition.tabular:
        return list(model.definition.tensors)
    return [
        TensorSpec(name=c.name, datatype="FP64" if c.kind == "number" else "BYTES", shape=(-1,)) for c in model.columns
    ]


class _Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without the box's token before their message is decoded."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The method's own handler, or one that refuses."""
        if details.method in _OPEN:
            return await continuation(details)
        headers = {key.encode(): _bytes(value) for key, value in details.invocation_metadata}
        refusal = self._access.refuses(headers, details.method)
        if refusal is None:
            return await continuation(details)

        async def refuse(_request: Any, context: Any) -> None:
            await _refuse(context, refusal)

        return grpc.unary_unary_rpc_method_handler(refuse)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
