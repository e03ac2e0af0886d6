"""One line of the capture spool: what the worker answered for one row, told before the answer left."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A captured row. ``us`` is the request's service time in µs, ``t`` unix seconds of the capture; ``p`` is
    null in a failed run, whose ``err`` says why. ``unit`` and what follows are how a split chose who answered; lines of
    before have none."""

    id: str
    at: str | None = None
    model: str
    version: str = ""
    release: str = ""
    row: dict[str, Any]
    p: float | list[float] | None = None
    shadow: float | list[float] | None = None
    shadow_release: str | None = None
    us: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0
    t: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    err: str | None = None
    unit: str | None = None
    by: str | None = None
    arm: str | None = None
    against: str | None = None
    share: float | None = None


class Chunk(msgspec.Struct, frozen=True):
    """Whole lines from one file: the good ones, how many were unreadable, and where the next one begins."""

    lines: tuple[Line, ...]
    bad: int
    end: int


_DECODER = msgspec.json.Decoder(Line)


Unseal = Callable[[bytes], bytes | None]


def parse_lines(data: bytes, offset: int, *, closed: bool, unseal: Unseal | None = None) -> Chunk:
    """The lines in bytes that begin at ``offset`` of a file.

    A last piece without a newline waits for its rest. In a ``closed`` file there is no rest: the worker died
    inside the write, before the answer, so nobody was told; the piece is counted as bad. ``unseal`` opens lines that
    hold several sealed ones.
    """
    cut = data.rfind(b"\n") + 1
    lines: list[Line] = []
    bad = 0
    for raw in _raw_lines(data[:cut], unseal):
        if raw is None:
            bad += 1
            continue
        try:
            lines.append(_DECODER.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError):
            bad += 1
    if closed and cut < len(data):
        return Chunk(tuple(lines), bad + 1, offset + len(data))
    return Chunk(tuple(lines), bad, offset + cut)


def _raw_lines(data: bytes, unseal: Unseal | None) -> Iterator[bytes | None]:
    """Every line; None for a sealed one that cannot be opened."""
    for outer in data.splitlines():
        opened = unseal(outer) if unseal and outer else outer
        if opened is None:
            yield None
        else:
            yield from (line for line in opened.splitlines() if line)
