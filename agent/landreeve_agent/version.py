"""Which version of the agent this is."""

from datetime import UTC, datetime
from importlib import metadata

# No clock that is right shows an earlier time: signed metadata is judged against this at least.
BUILD_TIME = datetime(2026, 11, 1, tzinfo=UTC)


def agent_version() -> str:
    """The installed distribution's version; of a bare source tree, ``0.1.0+source``."""
    try:
        return metadata.version("landreeve")
    except metadata.PackageNotFoundError:
        return "0.1.0+source"
