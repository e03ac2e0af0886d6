"""``POST /v2/models/{m}[/versions/{v}]/infer``: a request's whole way from bytes to bytes. The hot path over HTTP."""

import time
from urllib.parse import unquote

import msgspec

from landreeve_agent.serving import errors, oip
from landreeve_agent.serving.heads import Head
from landreeve_agent.serving.http import Request, Response, Send
from landreeve_agent.serving.routes import Answered, Routes

RETRY_AFTER = b"retry-after: 1\r\n"
ENCODE = msgspec.json.Encoder().encode
_BINARY_TYPE = b"application/octet-stream"
# Most specific class first: a subclass must not be caught by its parent's status.
_STATUSES: tuple[tuple[type[errors.ServingError], int, bytes], ...] = (
    (errors.TooLargeError, 413, b""),
    (errors.BadRequestError, 400, b""),
    (errors.UnsupportedError, 415, b""),
    (errors.MethodError, 405, b"allow: GET, HEAD, POST\r\n"),
    (errors.UnauthorizedError, 401, b"www-authenticate: Bearer\r\n"),
    (errors.ForbiddenError, 403, b""),
    (errors.UnknownError, 404, b""),
    (errors.NotReadyError, 503, RETRY_AFTER),
    (errors.LateError, 504, b""),
)


def error_response(error: errors.ServingError) -> Response:
    """``{"error": "…"}`` with the status of the error's class; 500 for what is not the caller's fault."""
    body = ENCODE({"error": str(error)})
    for kind, status, headers in _STATUSES:
        if isinstance(error, errors.BusyError):
            return Response(429, body, headers=b"retry-after: %d\r\n" % error.retry_s)
        if isinstance(error, kind):
            return Response(status, body, headers=headers)
    return Response(500, body)


def refuse(status: int, text: str) -> Response:
    """A refusal before there is a request."""
    return Response(status, ENCODE({"error": text}))


class InferDoor:
    """Decodes requests for the routes and encodes their answers."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def infer(self, request: Request, send: Send) -> None:
        """Answer one request; raises the `ServingError` that refuses it."""
        began_ns = time.perf_counter_ns()
        head = request.head
        model, version, json_bytes = head.known or _know(head)
        routes = self._routes
        interface = routes.interface(model, version)
        try:
            decoded = oip.decode(request.body, json_bytes, interface)
        except errors.BadRequestError:
            routes.refused(model)
            raise

        def respond(answer: Answered | errors.ServingError) -> None:
            send(_response(answer) if isinstance(answer, Answered) else error_response(answer))

        request.on_gone = routes.submit(model, version, decoded, respond, began_ns)


def _know(head: Head) -> tuple[str, str | None, int | None]:
    """What a head asks for, checked once for all requests that begin with the same bytes."""
    headers = head.headers
    if b"origin" in headers:
        # A page in a browser on this box must not feed or ask the site's models; applications send no Origin.
        raise errors.ForbiddenError("origin: web pages may not call the inference API; call it from your application")
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise errors.UnsupportedError("content-encoding: send the body uncompressed")
    known = head.known = (*_target(head.path), _length(headers.get(b"inference-header-content-length")))
    return known


def _target(path: str) -> tuple[str, str | None]:
    match [unquote(part) for part in path.split("/")[1:]]:
        case ["v2", "models", model, "infer"]:
            return (model, None)
        case ["v2", "models", model, "versions", version, "infer"]:
            return (model, version)
        case ["v2", *_] | ["metrics"]:
            raise errors.MethodError(f"{path[:200]}: only /v2/models/{{model}}/infer takes POST")
        case _:
            raise errors.UnknownError(f"path {path[:200]!r}: nothing is here; the API begins at /v2")


def _length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise errors.BadRequestError(f"Inference-Header-Content-Length: {value[:40]!r} is no number of bytes")
    return int(value)


def _response(answer: Answered) -> Response:
    request = answer.request
    json_bytes: int | None
    if answer.values is not None and request.wanted == (False,):
        return Response(200, oip.encode_values(answer.interface, request, answer.ids, answer.values))
    if answer.values is not None and request.wanted == (True,):
        body, json_bytes = oip.encode_raw(answer.interface, request, answer.ids, answer.values)
    else:
        body, json_bytes = oip.encode(answer.interface, request, answer.ids, answer.outputs)
        if json_bytes is None:
            return Response(200, body)
    return Response(200, body, _BINARY_TYPE, b"inference-header-content-length: %d\r\n" % json_bytes)
