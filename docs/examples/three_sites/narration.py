"""The teller's voice: numbered chapters, every line with the time it took so far and the day of the year it is.

On a terminal the last line moves while something takes its time; elsewhere a line says so twice a minute.
"""

import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TextIO

WIDTH = 120
_INDENT = " " * 17
_QUIET_S = 30.0


class Narrator:
    """``day`` tells the date of the story."""

    def __init__(self, day: Callable[[], datetime], out: TextIO = sys.stdout) -> None:
        self._day = day
        self._out = out
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._moving = out.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = ""
        self._chapters = 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def chapter(self, title: str, about: str = "") -> None:
        """The next chapter's number and title, and what it is about."""
        self._chapters += 1
        self.plain(f"\n{self._chapters}  {title}")
        for line in textwrap.wrap(about, WIDTH - 3):
            self.plain(f"   {line}")

    def say(self, text: str) -> None:
        """One line of the story, broken where it is longer than a terminal is wide."""
        lines = textwrap.wrap(" ".join(text.split()), WIDTH - len(_INDENT)) or [""]
        self.plain("\n".join([self._stamp() + lines[0], *(_INDENT + more for more in lines[1:])]))

    def plain(self, text: str = "") -> None:
        """Text as it is."""
        with self._lock:
            self._clear()
            self._write(text + "\n")

    @contextmanager
    def doing(self, what: str | Callable[[], str]) -> Iterator[None]:
        """Say what is under way, and for how long, until it is over."""
        over = threading.Event()
        ticking = threading.Thread(target=self._tick, args=(what, over), daemon=True)
        ticking.start()
        try:
            yield
        finally:
            over.set()
            ticking.join()
            with self._lock:
                self._clear()

    def _tick(self, what: str | Callable[[], str], over: threading.Event) -> None:
        began = time.monotonic()
        while not over.wait(0.5 if self._moving else _QUIET_S):
            words = what if isinstance(what, str) else what()
            text = f"{self._stamp()}… {words} ({time.monotonic() - began:.0f} s)"
            if not self._moving:
                self.plain(text)
                continue
            with self._lock:
                if not over.is_set():
                    self._clear()
                    self._shown = text[: _columns() - 1]
                    self._write(self._shown)

    def _clear(self) -> None:
        if self._shown:
            self._write("\r\x1b[K")
            self._shown = ""

    def _stamp(self) -> str:
        seconds = int(self.elapsed_s)
        return f"  {seconds // 60:3d}:{seconds % 60:02d}  {self._day():%d %b}  "

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            # The terminal is gone; ending everything orderly matters more than telling it.
            self._moving = False


def _columns() -> int:
    try:
        return min(WIDTH, os.get_terminal_size().columns)
    except OSError:
        return WIDTH
