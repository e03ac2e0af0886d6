"""What this agent knows of the firmware slots beside what they say themselves: one small file, replaced atomically.

Which release it wrote into which slot, that it asked for a boot, and how often. A file that is damaged means that
nothing is known: then images are written again and nothing is believed to be in place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from landreeve.blobs.durable import write_durably

BOOK_FILE = "slots.json"
MOST_BOOTS = 3


class Asked(msgspec.Struct, frozen=True):
    """A boot into the slot of ``release`` was asked for under the order of ``generation``, while ``boot`` ran."""

    release: str
    generation: int
    boot: str


class Proving(msgspec.Struct, frozen=True):
    """Since when (s of uptime) a boot proves new firmware."""

    boot: str
    since_s: float


class Kept(msgspec.Struct, frozen=True):
    """``written`` maps slots to the release whose image they hold; ``boots`` counts boots into a slot that was proven
    before, ``boots_for`` names it."""

    written: dict[str, str] = {}
    asked: Asked | None = None
    proving: Proving | None = None
    boots: int = 0
    boots_for: str = ""


@dataclass(frozen=True)
class Book:
    """The file in ``folder``."""

    folder: Path

    def read(self) -> Kept:
        """What it says; nothing when it is missing or damaged."""
        try:
            return msgspec.json.decode((self.folder / BOOK_FILE).read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError):
            return Kept()

    def write(self, kept: Kept) -> None:
        """Keep it: whole or not at all, also across a power cut."""
        if kept != self.read():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self.folder / BOOK_FILE, msgspec.json.encode(kept))


def holding(slots: Mapping[str, str], release: str) -> str:
    """The slot that holds the release; empty when none does.

    >>> holding({"A": "", "B": "f" * 64}, "f" * 64)
    'B'
    """
    return next((slot for slot in sorted(slots) if release and slots[slot] == release), "")


def beside(slots: Sequence[str], booted: str) -> str:
    """The slot to write to: the first that does not run; empty when there is none."""
    return next((slot for slot in slots if slot != booted), "")


def written(kept: Kept, slot: str, release: str) -> Kept:
    """The same once the slot holds that release, or nothing that is known."""
    return msgspec.structs.replace(kept, written={**kept.written, slot: release}, asked=None)


def came_back(kept: Kept, release: str, generation: int, boot: str) -> bool:
    """Whether the system booted since the release was to be tried under this order: its slot should run now.

    >>> came_back(Kept(asked=Asked("f" * 64, 7, "monday")), "f" * 64, 7, "tuesday")
    True
    """
    asked = kept.asked
    return asked is not None and (asked.release, asked.generation) == (release, generation) and asked.boot != boot
