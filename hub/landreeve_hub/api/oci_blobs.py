"""A blob as an answer: whole, one range of it (RFC 9110, section 14), or its headers alone."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping

from landreeve.blobs.codec import BlobReader
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

PIECE_BYTES = 256 * 1024
BLOB_TYPE = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def respond(request: Request, reader: BlobReader, headers: Mapping[str, str]) -> Response:
    """The answer; it closes the reader. Several ranges at once are answered with the whole blob, as a server may."""
    size = reader.size
    found = _asked(request, size, headers.get("ETag", ""))
    kept = {**headers, "Accept-Ranges": "bytes"}
    if found is None:
        reader.close()
        return Response(status_code=416, headers={**kept, "Content-Range": f"bytes */{size}"})
    first, last = found
    whole = (first, last) == (0, size - 1)
    kept["Content-Length"] = str(last - first + 1)
    if not whole:
        kept["Content-Range"] = f"bytes {first}-{last}/{size}"
    if request.method == "HEAD":
        reader.close()
        return Response(status_code=200 if whole else 206, headers=kept, media_type=BLOB_TYPE)
    pieces = _pieces(reader, first, last)
    return StreamingResponse(pieces, 200 if whole else 206, headers=kept, media_type=BLOB_TYPE)


def _asked(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """First and last byte asked for; None when there are no such bytes. What is no single range asks for all."""
    everything = (0, size - 1)
    parts = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if parts is None or parts.group(0) == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return everything
    first, last = parts.groups()
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else None
    if last and int(last) < int(first):
        return everything
    return (int(first), min(int(last or size), size - 1)) if int(first) < size else None


async def _pieces(reader: BlobReader, first: int, last: int) -> AsyncIterator[bytes]:
    try:
        while first <= last:
            piece = await asyncio.to_thread(reader.read_at, first, min(PIECE_BYTES, last - first + 1))
            if not piece:
                return
            first += len(piece)
            yield piece
    finally:
        reader.close()
