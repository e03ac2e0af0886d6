"""Asking a model by hand: a form's fields, a request to paste, and the route that asks in a browser's stead.

A page may talk to its own origin only, and the inference server is another one. So the console takes the row,
sends it through the public inference protocol like any application, and hands the answer back.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from landreeve.ui.asgi import request_of
from landreeve.ui.inside import Api, ApiError

from landreeve_agent.serving.door import Door

TIMEOUT_S = 10.0


def install(app: FastAPI) -> None:
    """Add ``POST /api/v1/models/{model}/try`` {row: {column: value}} → {p, model, version}."""

    @app.post("/api/v1/models/{model}/try", summary="Ask a model with one row, through the inference protocol")
    async def ask_once(model: str, request: Request) -> JSONResponse:
        api = Api(app, request_of(request.scope))
        try:
            # Reading the status first settles who asks: only a caller who may see it goes on.
            status = await api.get("status")
            columns = fields((await api.get("models", model)).get("definition"))
            row = (await request.json()).get("row") or {}
            return JSONResponse(await _ask(status["serving"], app.state.inference, model, columns, row))
        except ApiError as error:
            return _problem(error.status, error.title, error.detail)
        except ValueError as error:
            return _problem(422, "Bad request", f"The row is no JSON object of columns: {error}")


def fields(definition: Mapping[str, Any] | None, sketches: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The model's inputs as form fields, each with an example: what the latest window saw, else the range's middle."""
    seen = sketches or {}
    return [_field(column, seen.get(column["name"]) or {}) for column in (definition or {}).get("columns") or ()]


def _field(column: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    numeric = column.get("kind") != "category"
    choices = [] if numeric else [str(value) for value in seen.get("values") or ()]
    example = f"{_typical(column, seen):g}" if numeric else (choices[0] if choices else "")
    named = {"name": column["name"], "unit": column.get("unit", ""), "numeric": numeric}
    return {**named, "choices": choices, "example": example}


def _typical(column: Mapping[str, Any], seen: Mapping[str, Any]) -> float:
    edges = seen.get("edges") or ()
    if edges:
        return float(edges[len(edges) // 2])
    low, high = column.get("low"), column.get("high")
    return (low + high) / 2 if low is not None and high is not None else float(low or 0)


async def _ask(
    serving: str, door: Door, model: str, columns: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> Any:
    import httpx2

    body = {"id": f"try-{uuid.uuid4().hex[:12]}", "inputs": [_tensor(column, row) for column in columns]}
    try:
        async with httpx2.AsyncClient(timeout=TIMEOUT_S, verify=door.trust(), headers=door.headers()) as client:
            answer = await client.post(f"{_http(serving)}/v2/models/{model}/infer", json=body)
    except httpx2.HTTPError as error:
        raise ApiError(502, "No answer", f"The inference server did not answer: {error}") from error
    document = answer.json()
    if answer.status_code != 200:
        raise ApiError(answer.status_code, "Not answered", str(document.get("error") or document))
    return {
        "p": document["outputs"][0]["data"][0],
        "model": model,
        "version": document.get("model_version", ""),
    }


def _tensor(column: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    kind = "FP32" if column["numeric"] else "BYTES"
    return {"name": column["name"], "shape": [1], "datatype": kind, "data": [row.get(column["name"])]}


def curl(serving: str, name: str, columns: Sequence[Mapping[str, Any]]) -> str:
    """A request that works when pasted: Open Inference Protocol v2, one named tensor per column."""
    examples = {c["name"]: float(c["example"] or 0) if c["numeric"] else c["example"] for c in columns}
    lines = ",\n   ".join(json.dumps(_tensor(column, examples), ensure_ascii=False) for column in columns)
    proof = ""
    if serving.startswith("https://"):
        proof = '--cacert serving.crt -H "Authorization: Bearer $(landreeve token show app)" \\\n '
    return f"curl {proof}{_http(serving)}/v2/models/{name}/infer -d '\n {{\"inputs\": [\n   {lines}]}}'"


def samples_curl(console: str, name: str, columns: Sequence[Mapping[str, Any]]) -> str:
    """A request that brings in one sample, with the token that applications use."""
    row = {c["name"]: float(c["example"] or 0) if c["numeric"] else c["example"] or "?" for c in columns}
    sample = json.dumps({"samples": [{"id": "1", "at": "2026-01-31T12:00:00Z", "row": row}]}, indent=1)
    header = '-H "Authorization: Bearer $(landreeve token show app)"'
    return f"curl {console}/api/v1/models/{name}/samples \\\n {header} -d '\n{sample}'"


def _http(serving: str) -> str:
    return serving if serving.startswith(("http://", "https://")) else f"http://{serving}"


def _problem(status: int, title: str, detail: str) -> JSONResponse:
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return JSONResponse(document, status, media_type="application/problem+json")
