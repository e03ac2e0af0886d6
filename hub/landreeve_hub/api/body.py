"""Reading what a request carries: JSON into a struct, with errors that name the field."""

from typing import TypeVar

import msgspec
from starlette.requests import Request

from landreeve_hub import slips
from landreeve_hub.api.problems import Problem

T = TypeVar("T")
MAX_JSON_BYTES = 1024 * 1024


async def read(request: Request, kind: type[T]) -> T:
    """The request's JSON as that type; a problem names the field that is wrong."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_JSON_BYTES:
            raise Problem(413, f"body: at most {MAX_JSON_BYTES} bytes of JSON are accepted")
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise Problem(422, slips.in_words(error, kind, "body")) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(422, f"body: {error}") from error
    except RecursionError as error:
        raise Problem(422, "body: nested too deeply") from error


def text_of(text: str) -> str:
    """Foreign text for a sentence: short and quoted."""
    return repr(text[:60])
