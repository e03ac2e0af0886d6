"""Latencies as counts in fixed logarithmic buckets: exact to merge, small to store.

Eight buckets an octave of microseconds, so a quantile is off by at most 9 % (as HdrHistogram with one digit).
"""

import math
from collections.abc import Iterable, Mapping

import msgspec

_PER_OCTAVE = 8


def bucket_of(us: float) -> int:
    """The bucket of a duration in µs.

    >>> bucket_of(1), bucket_of(2), bucket_of(1024)
    (0, 8, 80)
    """
    return max(0, math.floor(math.log2(max(us, 1.0)) * _PER_OCTAVE))


def middle_of(bucket: int) -> float:
    """The duration in µs that stands for a bucket: its geometric middle."""
    return float(2.0 ** ((bucket + 0.5) / _PER_OCTAVE))


Counts = dict[int, int]


def count(durations_us: Iterable[float]) -> Counts:
    """How many durations fall in each bucket."""
    counts: Counts = {}
    for us in durations_us:
        bucket = bucket_of(us)
        counts[bucket] = counts.get(bucket, 0) + 1
    return counts


def merge(a: Mapping[int, int], b: Mapping[int, int]) -> Counts:
    """The counts of both."""
    return {bucket: a.get(bucket, 0) + b.get(bucket, 0) for bucket in {*a, *b}}


def quantile_ms(counts: Mapping[int, int], q: float) -> float | None:
    """The q-quantile in ms, or None when nothing was counted.

    >>> round(quantile_ms(count([1000.0] * 99 + [8000.0]), 0.5), 1)
    1.0
    """
    rank = q * sum(counts.values())
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= rank:
            return middle_of(bucket) / 1000
    return None


def encode_counts(counts: Mapping[int, int]) -> str:
    """The counts as JSON."""
    return msgspec.json.encode({str(bucket): n for bucket, n in sorted(counts.items())}).decode()


def decode_counts(text: str | None) -> Counts:
    """The counts in a JSON text; none in an empty one."""
    return {int(bucket): int(n) for bucket, n in msgspec.json.decode(text or "{}").items()}
