"""Where the time goes, as the console tells it: from the worker's own exposition, over its own door."""

import asyncio

import pytest
from landreeve.ui.inside import ApiError
from landreeve_agent.console.stages import ORDER, _metrics, quantile, stages_of
from landreeve_agent.serving.door import Door
from landreeve_agent.serving.metrics import STAGES, Metrics


def exposition() -> str:
    metrics = Metrics()
    for ns in (100_000, 120_000, 4_000_000):
        metrics.of("delay").stages["run"].add(ns)
    metrics.of("delay").stages["queue"].add(1_000_000, 3)
    metrics.of("other").stages["run"].add(9_000_000_000)
    return metrics.text(1, {})


def test_stages_of_a_model_are_told_in_the_order_of_a_request() -> None:
    rows = stages_of(exposition(), "delay")
    assert [row["stage"] for row in rows] == ["queue", "run"]
    run = rows[1]
    assert run["count"] == 3
    assert run["mean_us"] == pytest.approx(4220 / 3, rel=1e-3)
    assert 65 < run["p50_us"] < 132
    assert 2097 < run["p95_us"] < 4195
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


def test_every_stage_the_worker_counts_has_its_place() -> None:
    assert set(STAGES) == set(ORDER)


def test_worker_that_has_answered_nothing_or_tells_no_stages_has_none() -> None:
    assert stages_of(Metrics().text(1, {}), "delay") == []
    assert stages_of("# nothing\nlandreeve_requests_total 4\n", "delay") == []


def test_value_beyond_the_last_limit_is_told_as_that_limit() -> None:
    assert quantile([(1.0, 0), (2.0, 0), (float("inf"), 4)], 0.95) == 2.0
    assert quantile([(1.0, 0), (float("inf"), 0)], 0.5) is None
    assert quantile([], 0.5) is None


async def serve(answer: bytes) -> asyncio.Server:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /metrics HTTP/1.1\r\n")
        writer.write(answer)
        writer.close()

    return await asyncio.start_server(talk, "127.0.0.1", 0)


async def test_exposition_is_fetched_from_the_worker() -> None:
    body = exposition().encode()
    async with await serve(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body) as server:
        port = server.sockets[0].getsockname()[1]
        assert await _metrics(f"http://127.0.0.1:{port}", Door()) == body.decode()


async def test_worker_that_refuses_or_is_away_is_named() -> None:
    async with await serve(b"HTTP/1.1 401 Unauthorized\r\n\r\n") as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ApiError, match="did not tell"):
            await _metrics(f"http://127.0.0.1:{port}", Door())
    with pytest.raises(ApiError, match="did not answer"):
        await _metrics(f"http://127.0.0.1:{port}", Door())
