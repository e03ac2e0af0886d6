"""Errors in the words of the OCI distribution specification."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

VERSION_HEADER = {"Docker-Distribution-Api-Version": "registry/2.0"}


class OciProblem(HTTPException):
    """An answer to an OCI client that is an error: status, code of the specification, one sentence."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.code = code


def respond(problem: OciProblem) -> Response:
    """The problem as a response."""
    errors: list[dict[str, Any]] = [{"code": problem.code, "message": problem.detail, "detail": None}]
    return JSONResponse({"errors": errors}, problem.status_code, {**VERSION_HEADER, **(problem.headers or {})})


def install(app: FastAPI) -> None:
    """Answer every such error in that form."""

    @app.exception_handler(OciProblem)
    async def _oci(_request: Request, problem: OciProblem) -> Response:
        return respond(problem)
