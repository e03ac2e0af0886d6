"""Errors of the rooms as RFC 9457 problems; the only place that knows HTTP statuses of errors."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from landreeve.blobs.errors import CorruptBlobError, FullDiskError
from landreeve.release.manifest import BadReleaseError
from landreeve.wire.ids import BadIdError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from landreeve_hub.access.passwords import BadPasswordError
from landreeve_hub.access.users import UserExistsError
from landreeve_hub.errors import NotFoundError
from landreeve_hub.incidents.incidents import IncidentStateError, UnknownIncidentError
from landreeve_hub.registry.garbage import DoubtError
from landreeve_hub.registry.releases import WrongStateError
from landreeve_hub.rollout.book import UnknownRolloutError
from landreeve_hub.rollout.conflicts import NoConflictError
from landreeve_hub.rollout.policy import BadPlanError
from landreeve_hub.rollout.propose import RolloutRefusedError
from landreeve_hub.rollout.runner import NotAllowedError
from landreeve_hub.signing.errors import BadRequestError, SigningError

_STATUS: dict[type[Exception], int] = {
    BadRequestError: 422,
    SigningError: 409,
    BadPlanError: 422,
    BadIdError: 422,
    BadReleaseError: 422,
    BadPasswordError: 422,
    UserExistsError: 409,
    WrongStateError: 409,
    DoubtError: 409,
    RolloutRefusedError: 409,
    IncidentStateError: 409,
    NoConflictError: 409,
    NotAllowedError: 403,
    UnknownRolloutError: 404,
    NotFoundError: 404,
    UnknownIncidentError: 404,
    LookupError: 404,
    CorruptBlobError: 500,
    FullDiskError: 507,
    ValueError: 422,
}
_TITLES = {
    400: "Bad request",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Unknown format",
    422: "Not acceptable as it is",
    429: "Too many attempts",
    507: "No room",
}


class Problem(HTTPException):
    """An answer that is a problem: its status, and one sentence saying what to do."""


def respond(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """The problem as a response."""
    body = {"type": "about:blank", "title": _TITLES.get(status, f"HTTP {status}"), "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Answer every expected error as a problem."""
    for kind, status in _STATUS.items():
        app.add_exception_handler(kind, _handler(status))

    @app.exception_handler(Exception)
    async def _ours(_request: Request, error: Exception) -> Response:
        return respond(500, f"The hub failed at this ({type(error).__name__}); its log says where.")

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> Response:
        return respond(error.status_code, str(error.detail), dict(error.headers) if error.headers else None)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(
            f"{'.'.join(str(p) for p in e['loc'][1:]) or e['loc'][0]}: {e['msg']}" for e in error.errors()
        )
        return respond(422, wrong)


def _field_and_fault(found: Any) -> str:
    """The field's dotted name and what is wrong with it."""
    return f"{'.'.join(str(part) for part in found['loc'][1:]) or found['loc'][0]}: {found['msg']}"


def _handler(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(_request: Request, error: Exception) -> Response:
        detail = str(error.args[0]) if error.args else str(error)
        return respond(status, detail)

    return handle
