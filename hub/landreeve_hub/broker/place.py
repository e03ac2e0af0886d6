"""Where a broker is, read from its URL. Pure."""

from urllib.parse import urlsplit

from landreeve_hub.errors import OperatorError

PORT = 8883


def broker_place(url: str) -> tuple[str, int]:
    """Host and port of ``mqtts://host:port``; `OperatorError` says how to write it.

    >>> broker_place("mqtts://broker.example")
    ('broker.example', 8883)
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or parts.scheme not in {"mqtts", "ssl"}:
        raise OperatorError(f"broker.url {url!r}: write it as mqtts://host:8883")
    return host, port or PORT
