"""Refusals as RFC 9457 problem documents."""

from collections.abc import Mapping, Sequence

import msgspec
from fastapi import Response


class Problem(Exception):  # noqa: N818 - the RFC's word
    """A refusal with its HTTP status, title, plain detail, and the fields that are wrong."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, object]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.title, self.detail = status, title, detail
        self.errors, self.headers = tuple(errors), dict(headers or {})


def problem_bytes(problem: Problem) -> bytes:
    """The document."""
    document: dict[str, object] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.errors:
        document["errors"] = problem.errors
    return msgspec.json.encode(document)


def problem_response(problem: Problem) -> Response:
    """The document as an answer."""
    return Response(problem_bytes(problem), problem.status, problem.headers, "application/problem+json")
