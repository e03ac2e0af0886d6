"""Metrics as one row for each device, metric set and minute: 1.6 to 9 bytes a point instead of 100 in narrow rows.

The value is zstd over JSON: a list of rows ``[unix seconds, value, …]`` in order of time, one for each second.
"""

from collections.abc import Iterable, Sequence

import msgspec
import zstandard
from sqlalchemy import Connection, select

from landreeve_hub.store import tables
from landreeve_hub.store.upsert import upsert

Row = tuple[float | None, ...]
_ROWS = msgspec.json.Decoder(list[tuple[float | None, ...]])
# Each minute of a fact costs the hub a read and a write: one fact must not hold up the fleet's for seconds.
MAX_MINUTES = 240
_MAX_BYTES = 8 * 1024 * 1024


def encode_minute(rows: Sequence[Row]) -> bytes:
    """The rows of a minute as they are stored."""
    return zstandard.ZstdCompressor(level=3).compress(msgspec.json.encode(rows))


def decode_minute(data: bytes) -> list[Row]:
    """The rows of a minute, in order of time."""
    return _ROWS.decode(zstandard.ZstdDecompressor().decompress(data, max_output_size=_MAX_BYTES))


def merge_rows(connection: Connection, device: str, metric_set: int, rows: Iterable[Row]) -> None:
    """Add rows to their minutes; a row of the same moment replaces the one before. A row without its time is
    a `ValueError`."""
    minutes: dict[int, list[Row]] = {}
    for row in rows:
        if not row or row[0] is None:
            raise ValueError("metrics: a row begins with its unix seconds")
        minutes.setdefault(int(row[0] // 60), []).append(row)
    if len(minutes) > MAX_MINUTES:
        raise ValueError(f"metrics: rows of {len(minutes)} minutes in one fact, at most {MAX_MINUTES} are taken")
    for minute, added in minutes.items():
        _merge_minute(connection, {"device": device, "minute": minute, "set": metric_set}, added)


def _merge_minute(connection: Connection, key: dict[str, int | str], added: list[Row]) -> None:
    table = tables.metrics
    own = [table.c[name] == value for name, value in key.items()]
    stored = connection.execute(select(table.c["values"]).where(*own)).scalar()
    merged = {row[0] or 0.0: row for row in [*(decode_minute(stored) if stored else ()), *added]}
    upsert(connection, table, {**key, "values": encode_minute([merged[at] for at in sorted(merged)])})


def read_rows(connection: Connection, device: str, metric_set: int, since_s: float) -> list[Row]:
    """The rows of a device's metric set from that unix second on, in order of time."""
    table = tables.metrics
    wanted = select(table.c["values"]).where(
        table.c.device == device, table.c["set"] == metric_set, table.c.minute >= int(since_s // 60)
    )
    found = connection.execute(wanted.order_by(table.c.minute)).scalars()
    return [row for data in found for row in decode_minute(data) if (row[0] or 0.0) >= since_s]
