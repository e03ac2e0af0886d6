"""The comparison's rows, ``{what, value, unit, bar, holds}``: every figure, then the bars; and the tables it prints."""

from collections.abc import Iterator, Sequence

from tests.bench.peers.results import Key, Results

Row = dict[str, object]
FIGURES = (
    ("requests a second", "rps", "1/s"),
    ("p50", "p50_us", "µs"),
    ("p99", "p99_us", "µs"),
    ("CPU a request", "cpu_us", "µs"),
    ("PSS of all its processes", "pss_mb", "MB"),
)
CPU_BARS = (
    ("mlserver", "JSON", "JSON", 10.0),
    ("pytriton", "JSON", "JSON", 10.0),
    ("pytriton", "binary", "binary", 10.0),
    ("pytriton", "binary", "compact binary", 10.0),
    ("fastapi", "JSON", "JSON", 6.0),
)
JSON_BAR_US, BINARY_BAR_US = 50.0, 30.0
P50_BAR, BARE_BAR, PEER_BAR = 5.0, 0.92, 1.3
MANY = 16
TABULAR_FORMS = ("JSON", "binary", "compact binary")
IMAGE_PEERS = (
    ("mlserver", "JSON"), ("mlserver", "gRPC"), ("pytriton", "binary"), ("pytriton", "gRPC"), ("fastapi", "JSON")
)  # fmt: skip


def rows(results: Results) -> list[Row]:
    """All rows: load, figures, bars, and what is missing. A bar that could not be measured neither holds nor fails."""
    found: list[Row] = []
    if results.loads:
        found.append(_row("load average as the first round began", results.loads[0], "", None, holds=None))
    for key in results.rounds:
        for what, figure, unit in FIGURES:
            value = results.median(key, figure)
            if value:
                found.append(_row(f"{title(key)}: {what}", value, unit, None, holds=None))
        failures = sum(one.failures for one in results.rounds[key])
        if failures:
            found.append(_row(f"{title(key)}: failed requests", failures, "", "0", holds=False))
    found += bars(results)
    found += [_row(f"not measured: {what}: {why}", None, "", None, holds=None) for what, why in results.missing.items()]
    return found


def title(key: Key) -> str:
    """The case in words."""
    server, model, form, clients = key
    if server == "bare":
        return f"{model}, onnxruntime called in process"
    return f"{model}, {server}, {form}, {clients} client{'s' if clients > 1 else ''}"


def bars(results: Results) -> list[Row]:
    """The comparison that is asked of the project."""
    return [*_own_bars(results), *_cpu_bars(results), *_p50_bars(results), *_image_bars(results)]


def _quickest_binary(results: Results) -> str:
    """The binary form that costs us least: a caller who wants speed takes that one."""
    forms = [form for form in TABULAR_FORMS if form != "JSON" and ("worker", "tabular", form, MANY) in results.rounds]
    return min(forms, key=lambda form: results.median(("worker", "tabular", form, MANY), "cpu_us") or 0.0, default="")


def _own_bars(results: Results) -> Iterator[Row]:
    """CPU a request of the worker under many clients, by itself."""
    for form, bar in (("JSON", JSON_BAR_US), (_quickest_binary(results), BINARY_BAR_US)):
        value = results.median(("worker", "tabular", form, MANY), "cpu_us")
        if value is not None:
            what = f"tabular, {MANY} clients: CPU a request, ours {form}"
            yield _row(what, value, "µs", f"≤ {bar:g}", holds=value <= bar)


def _cpu_bars(results: Results) -> Iterator[Row]:
    """CPU a request of the tabular model under many clients: a peer's by ours, in the same kind of request."""
    for server, theirs, ours, bar in CPU_BARS:
        above, below = (server, "tabular", theirs, MANY), ("worker", "tabular", ours, MANY)
        what = f"tabular, {MANY} clients: CPU a request, {server} {theirs} by ours {ours}"
        yield _at_least(what, results.ratio(above, below, "cpu_us"), bar)


def _p50_bars(results: Results) -> Iterator[Row]:
    """Latency over HTTP by the bare call; the bar is the quickest form's, the others are shown beside it."""
    barred = _quickest_binary(results) or "JSON"
    for form in TABULAR_FORMS:
        ratio = results.ratio(("worker", "tabular", form, 1), ("bare", "tabular", "in process", 1), "p50_us")
        if ratio is not None:
            bar = f"≤ {P50_BAR:g}" if form == barred else None
            what = f"tabular, one client: p50 over HTTP, {form}, by the bare call"
            yield _row(what, ratio, "times", bar, holds=None if bar is None else ratio <= P50_BAR)


def _image_bars(results: Results) -> Iterator[Row]:
    """Throughput of the image model under many clients, by the bare runtime's and by the best peer's.

    FastAPI with raw bytes is shown without a bar: it has no protocol and checks nothing, so with one plan for all it
    measures the distance to the bare runtime once more.
    """
    ours = ("worker", "image", "binary", MANY)
    throughput = f"image, {MANY} clients: throughput, ours binary by"
    bare = results.ratio(ours, ("bare", "image", "in process", 1), "rps")
    yield _at_least(f"{throughput} the bare runtime's", bare, BARE_BAR)
    keys = [(server, "image", form, MANY) for server, form in IMAGE_PEERS]
    best = max(keys, key=lambda key: results.median(key, "rps") or 0.0)
    yield _at_least(f"{throughput} the best peer's ({best[0]} {best[2]})", results.ratio(ours, best, "rps"), PEER_BAR)
    raw = results.ratio(ours, ("fastapi", "image", "raw bytes", MANY), "rps")
    yield _row(f"{throughput} FastAPI's with raw bytes", raw, "times", None, holds=None)


def _at_least(what: str, value: float | None, bar: float) -> Row:
    return _row(what, value, "times", f"≥ {bar:g}", holds=None if value is None else value >= bar)


def _row(what: str, value: float | None, unit: str, bar: str | None, *, holds: bool | None) -> Row:
    shown = None if value is None else round(value, 2 if abs(value) < 100 else 1)
    return {"what": what, "value": shown, "unit": unit, "bar": bar, "holds": holds}


def show(results: Results, found: Sequence[Row]) -> None:
    """Print the table of medians, the bars, and what is missing."""
    print(f"{'':44}{'req/s':>9}{'p50 µs':>10}{'p99 µs':>10}{'CPU µs/req':>12}{'RSS MB':>8}{'PSS MB':>8}")
    for key in sorted(results.rounds, key=lambda key: (key[1], key[3], key[0] != "bare", key[0] != "worker", key)):
        values = [
            results.median(key, name) or 0.0 for name in ("rps", "p50_us", "p99_us", "cpu_us", "rss_mb", "pss_mb")
        ]
        rps, p50, p99, cpu, rss, pss = values
        memory = f"{rss:8.0f}{pss:8.0f}" if rss else ""
        print(f"{title(key):44}{rps:9.0f}{p50:10.1f}{p99:10.1f}{cpu:12.1f}{memory}")
    for row in found:
        if row["bar"] is not None or str(row["unit"]) == "times":
            verdict = {True: "holds", False: "MISSED", None: "no bar" if row["bar"] is None else "not measured"}
            bar = f"bar {row['bar']}: " if row["bar"] else ""
            print(f"{row['what']}: {row['value']} {row['unit']} ({bar}{verdict[row['holds']]})")  # type: ignore[index]
    for what, why in results.missing.items():
        print(f"not measured: {what}: {why}")
