"""One line of the capture spool: what the worker answered for one row, told before the answer left."""

from typing import Annotated, Any

import msgspec


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A captured row. ``us`` is the request's service time in µs, ``t`` unix seconds of the capture; ``p`` is
    null in a failed run, whose ``err`` says why."""

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


class Chunk(msgspec.Struct, frozen=True):
    """Whole lines from one file: the good ones, how many were unreadable, and where the next one begins."""

    lines: tuple[Line, ...]
    bad: int
    end: int


_DECODER = msgspec.json.Decoder(Line)


def parse_lines(data: bytes, offset: int, *, closed: bool) -> Chunk:
    """The lines in bytes that begin at ``offset`` of a file.

    A last piece without a newline waits for its rest. In a ``closed`` file there is no rest: the worker died
    inside the write, before the answer, so nobody was told; the piece is counted as bad.
    """
    cut = data.rfind(b"\n") + 1
    lines: list[Line] = []
    bad = 0
    for raw in data[:cut].splitlines():
        if not raw:
            continue
        try:
            lines.append(_DECODER.decode(raw))
        except (msgspec.DecodeError, UnicodeDecodeError):
            bad += 1
    if closed and cut < len(data):
        return Chunk(tuple(lines), bad + 1, offset + len(data))
    return Chunk(tuple(lines), bad, offset + cut)
