"""Reading answers of the API."""

import re
from collections.abc import Mapping
from typing import Any


def listed(answer: object) -> list[dict[str, Any]]:
    """The rows of a JSON answer, whether it is a list or an object that holds one."""
    if isinstance(answer, Mapping):
        answer = next((part for part in answer.values() if isinstance(part, list)), [])
    return [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []


def order_of(version: object) -> tuple[int, ...]:
    """A key that puts ``v10`` after ``v9``.

    >>> sorted(["v10", "v9"], key=order_of)
    ['v9', 'v10']
    """
    return tuple(int(part) for part in re.findall(r"\d+", str(version)))
