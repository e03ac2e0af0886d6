"""Reading answers of the API."""

from collections.abc import Mapping
from typing import Any


def listed(answer: object) -> list[dict[str, Any]]:
    """The rows of a JSON answer, whether it is a list or an object that holds one."""
    if isinstance(answer, Mapping):
        answer = next((part for part in answer.values() if isinstance(part, list)), [])
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []
