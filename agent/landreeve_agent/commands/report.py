"""One line of ``landreeve doctor``."""

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """What was looked at, how it is, the fact, and how to mend it."""

    check: str
    state: Level
    fact: str
    fix: str = ""
