"""Where an answered request spent its time: the worker's own histograms, read for the console.

The worker tells them at ``/metrics`` (`landreeve_agent.serving.metrics`); nothing here is measured a second time.
"""

import asyncio
import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from landreeve.ui.asgi import request_of
from landreeve.ui.inside import Api, ApiError

from landreeve_agent.serving.door import Door

TIMEOUT_S = 3.0
MOST_BYTES = 8 * 1024 * 1024
ORDER = ("decode", "queue", "features", "run", "encode")
_LINE = re.compile(
    r'landreeve_stage_seconds_(?P<what>bucket|sum|count)\{model="(?P<model>[^"]+)",stage="(?P<stage>[a-z]+)"'
    r'(?:,le="(?P<le>[^"]+)")?\} (?P<value>\S+)'
)


@dataclass
class _Histogram:
    """Cumulative counts by upper limit in seconds, and the sum in seconds."""

    buckets: list[tuple[float, float]] = field(default_factory=list)
    total_s: float = 0.0
    count: float = 0.0


def install(app: FastAPI) -> None:
    """Add ``GET /api/v1/models/{model}/stages`` → [{stage, count, mean_us, p50_us, p95_us, share}]."""

    @app.get("/api/v1/models/{model}/stages", summary="Where answered requests of a model spent their time")
    async def stages(model: str, request: Request) -> JSONResponse:
        api = Api(app, request_of(request.scope))
        try:
            # Reading the status first settles who asks: only a caller who may see it goes on.
            status = await api.get("status")
            text = await _metrics(status["serving"], app.state.inference) if status["worker"]["pid"] else ""
        except ApiError as error:
            document = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail}
            return JSONResponse(document, error.status, media_type="application/problem+json")
        return JSONResponse({"items": stages_of(text, model)})


def stages_of(text: str, model: str) -> list[dict[str, Any]]:
    """The stages of a model in the order a request passes them, from a Prometheus exposition; none before the first
    answer, and none from a worker that does not tell them."""
    found: dict[str, _Histogram] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is not None and match["model"] == model:
            _add(found.setdefault(match["stage"], _Histogram()), match)
    told = {stage: histogram for stage, histogram in found.items() if histogram.count}
    whole = sum(histogram.total_s for histogram in told.values())
    return [_row(stage, told[stage], whole) for stage in _ordered(told)]


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """The value below which ``share`` of the counts lie, between the limits of its bucket as if they lay evenly.

    Source: Prometheus, ``histogram_quantile``.

    >>> quantile([(1.0, 0), (2.0, 10), (4.0, 10), (float("inf"), 10)], 0.5)
    1.5
    """
    wanted = share * buckets[-1][1] if buckets else 0.0
    below_limit = below_count = 0.0
    for limit, count in buckets:
        if count >= wanted and count > below_count:
            if limit == float("inf"):
                return below_limit
            return below_limit + (limit - below_limit) * (wanted - below_count) / (count - below_count)
        below_limit, below_count = limit, count
    return None


def _add(histogram: _Histogram, match: re.Match[str]) -> None:
    value = float(match["value"])
    if match["what"] == "sum":
        histogram.total_s = value
    elif match["what"] == "count":
        histogram.count = value
    elif match["le"]:
        histogram.buckets.append((float(match["le"]), value))


def _ordered(stages: Iterable[str]) -> list[str]:
    return sorted(stages, key=lambda stage: (ORDER.index(stage) if stage in ORDER else len(ORDER), stage))


def _row(stage: str, histogram: _Histogram, whole_s: float) -> dict[str, Any]:
    p50, p95 = quantile(histogram.buckets, 0.5), quantile(histogram.buckets, 0.95)
    return {
        "stage": stage,
        "count": int(histogram.count),
        "mean_us": histogram.total_s / histogram.count * 1e6,
        "p50_us": None if p50 is None else p50 * 1e6,
        "p95_us": None if p95 is None else p95 * 1e6,
        "share": histogram.total_s / whole_s if whole_s else 0.0,
    }


async def _metrics(serving: str, door: Door) -> str:
    """The worker's exposition. By hand: a page that looks every second should not load an HTTP client."""
    url = urlsplit(serving)
    trust = door.trust() if url.scheme == "https" else None
    lines = [f"GET /metrics HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close"]
    lines += [f"{name}: {value}" for name, value in door.headers().items()]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            answer = await _exchange(url.hostname or "", url.port or 80, trust, "\r\n".join(lines) + "\r\n\r\n")
    except (OSError, TimeoutError) as error:
        raise ApiError(502, "No answer", f"The inference server did not answer: {error or 'too slow'}") from error
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ApiError(502, "No answer", "The inference server did not tell its metrics.")
    return body.decode(errors="replace")


async def _exchange(host: str, port: int, trust: Any, request: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, ssl=trust)
    try:
        writer.write(request.encode("latin-1"))
        chunks, size = list[bytes](), 0
        while (chunk := await reader.read(65536)) and size <= MOST_BYTES:
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
