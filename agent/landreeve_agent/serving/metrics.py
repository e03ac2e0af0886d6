"""What the worker counts, and its Prometheus text.

Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from landreeve_agent.serving.control import Counts

BUCKETS_US = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


STAGES = ("decode", "queue", "features", "run", "encode")
_FIRST, _LAST = 10, 34  # 2**10 ns = 1 µs to 2**34 ns = 17 s


class Durations:
    """A histogram of nanoseconds in powers of two: adding costs a tenth of a microsecond."""

    __slots__ = ("counts", "total_ns")

    def __init__(self) -> None:
        self.counts = [0] * (_LAST - _FIRST + 2)
        self.total_ns = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Add one duration ``times`` over."""
        place = ns.bit_length() - _FIRST
        self.counts[0 if place < 0 else min(place, _LAST - _FIRST + 1)] += times
        self.total_ns += ns * times

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The Prometheus lines, in seconds."""
        below = 0
        for place, count in enumerate(self.counts[:-1]):
            below += count
            yield f'{name}_bucket{{{labels},le="{2 ** (place + _FIRST) / 1e9:.4g}"}} {below}'
        below += self.counts[-1]
        yield f'{name}_bucket{{{labels},le="+Inf"}} {below}'
        yield f"{name}_sum{{{labels}}} {self.total_ns / 1e9:.9f}"
        yield f"{name}_count{{{labels}}} {below}"


@dataclass(slots=True)
class ModelCounts:
    """One model's totals since the worker started; ``refused`` counts bad requests, ``failed`` failed runs, ``late``
    requests whose own time limit passed, ``busy`` those that found the queue full, ``batches`` runs by the power of two
    of their rows."""

    requests: int = 0
    rows: int = 0
    refused: int = 0
    failed: int = 0
    late: int = 0
    busy: int = 0
    shadow_failures: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_US) + 1))
    total_us: int = 0
    batches: list[int] = field(default_factory=lambda: [0] * 14)
    stages: dict[str, Durations] = field(default_factory=lambda: {stage: Durations() for stage in STAGES})

    def answered(self, rows: int, times_us: Sequence[int]) -> None:
        """Requests answered, with that many rows together, in that many microseconds each."""
        self.requests += len(times_us)
        self.rows += rows
        self.total_us += sum(times_us)
        for us in times_us:
            self.buckets[bisect_left(BUCKETS_US, us)] += 1

    def batched(self, rows: int) -> None:
        """One run of that many rows."""
        self.batches[min((rows - 1).bit_length(), 13)] += 1


@dataclass(slots=True)
class Metrics:
    """All models' totals and the worker's own."""

    models: dict[str, ModelCounts] = field(default_factory=dict)
    capture_failures: int = 0
    bad_http: int = 0

    def of(self, model: str) -> ModelCounts:
        """The counts of that model."""
        found = self.models.get(model)
        if found is None:
            found = self.models[model] = ModelCounts()
        return found

    def counts(self) -> Counts:
        """The sums over all models."""
        models = self.models.values()
        return Counts(
            requests=sum(m.requests for m in models),
            rows=sum(m.rows for m in models),
            errors=sum(m.failed for m in models),
            shadow_failures=sum(m.shadow_failures for m in models),
            capture_failures=self.capture_failures,
        )

    def text(self, rss_bytes: int, waiting: dict[str, int]) -> str:
        """The exposition; ``waiting`` is each model's queue length."""
        models = sorted(self.models.items())
        parts = [
            *_counter("requests", "Requests answered.", ((m, c.requests) for m, c in models)),
            *_counter("rows", "Rows answered.", ((m, c.rows) for m, c in models)),
            *_counter("refused", "Requests refused for a wrong field.", ((m, c.refused) for m, c in models)),
            *_counter("failed", "Requests whose run failed.", ((m, c.failed) for m, c in models)),
            *_counter("late", "Requests not run within their own time limit.", ((m, c.late) for m, c in models)),
            *_counter("busy", "Requests turned away because the queue was full.", ((m, c.busy) for m, c in models)),
            *_counter("shadow_failures", "Shadow runs that failed.", ((m, c.shadow_failures) for m, c in models)),
            *_histogram(models),
            *_stages(models),
            *_batches(models),
            "# HELP landreeve_waiting_requests Requests in the queue.",
            "# TYPE landreeve_waiting_requests gauge",
            *(f'landreeve_waiting_requests{{model="{name}"}} {count}' for name, count in sorted(waiting.items())),
            *_single(
                "capture_failures_total", "counter", "Requests whose rows could not be captured.", self.capture_failures
            ),
            *_single("bad_http_total", "counter", "Connections closed because they did not speak HTTP.", self.bad_http),
            *_single("worker_resident_bytes", "gauge", "Resident memory of the worker.", rss_bytes),
        ]
        return "\n".join(parts) + "\n"


def _counter(name: str, help_text: str, values: Iterable[tuple[str, int]]) -> list[str]:
    full = f"landreeve_{name}_total"
    head = [f"# HELP {full} {help_text}", f"# TYPE {full} counter"]
    # Model names are identifiers (`landreeve.wire.ids`): nothing in them needs escaping.
    return head + [f'{full}{{model="{model}"}} {value}' for model, value in values]


def _single(name: str, kind: str, help_text: str, value: int) -> list[str]:
    return [f"# HELP landreeve_{name} {help_text}", f"# TYPE landreeve_{name} {kind}", f"landreeve_{name} {value}"]


def _histogram(models: list[tuple[str, ModelCounts]]) -> list[str]:
    name = "landreeve_request_seconds"
    lines = [f"# HELP {name} Service time of answered requests.", f"# TYPE {name} histogram"]
    for model, counts in models:
        below = 0
        for limit, count in zip(BUCKETS_US, counts.buckets, strict=False):
            below += count
            lines.append(f'{name}_bucket{{model="{model}",le="{limit / 1e6:g}"}} {below}')
        lines.append(f'{name}_bucket{{model="{model}",le="+Inf"}} {counts.requests}')
        lines.append(f'{name}_sum{{model="{model}"}} {counts.total_us / 1e6:.6f}')
        lines.append(f'{name}_count{{model="{model}"}} {counts.requests}')
    return lines


def _stages(models: list[tuple[str, ModelCounts]]) -> list[str]:
    name = "landreeve_stage_seconds"
    lines = [f"# HELP {name} Where answered requests spent their time.", f"# TYPE {name} histogram"]
    for model, counts in models:
        for stage, durations in counts.stages.items():
            lines += durations.lines(name, f'model="{model}",stage="{stage}"')
    return lines


def _batches(models: list[tuple[str, ModelCounts]]) -> list[str]:
    name = "landreeve_batch_rows"
    lines = [f"# HELP {name} Rows joined into one run.", f"# TYPE {name} histogram"]
    for model, counts in models:
        below = 0
        for place, count in enumerate(counts.batches[:-1]):
            below += count
            lines.append(f'{name}_bucket{{model="{model}",le="{1 << place}"}} {below}')
        total = below + counts.batches[-1]
        lines.append(f'{name}_bucket{{model="{model}",le="+Inf"}} {total}')
        lines.append(f'{name}_sum{{model="{model}"}} {counts.rows}')
        lines.append(f'{name}_count{{model="{model}"}} {total}')
    return lines
