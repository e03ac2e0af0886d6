"""What a user has: the two command lines and the two HTTP APIs. The story uses nothing else."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


class StoryError(RuntimeError):
    """The story cannot go on; the text says what was awaited and what is there instead."""


MODULES = {"landreeve": "landreeve_agent", "landreeve-hub": "landreeve_hub"}


def cli(program: str, *arguments: str, accept: tuple[int, ...] = (0,)) -> Any:
    """Run ``landreeve`` or ``landreeve-hub`` with JSON output; what it says, read."""
    command = [sys.executable, "-m", MODULES[program], *arguments, "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode not in accept:
        said = done.stderr.strip().splitlines()[-6:]
        asked = " ".join(_public(arguments))
        raise StoryError(f"{program} {asked}: exit code {done.returncode}: " + " / ".join(said))
    text = done.stdout.strip()
    return json.loads(text) if text[:1] in "[{" and text else text


def _public(arguments: Sequence[str]) -> list[str]:
    """The arguments without the secret that comes after ``--token``: what is said may be copied anywhere."""
    return ["…" if before == "--token" else word for before, word in zip(("", *arguments), arguments, strict=False)]


class Api:
    """A JSON API with a bearer token."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token = token

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Any) -> Any:
        request = urllib.request.Request(  # noqa: S310  (our own loopback URL)
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            raise StoryError(f"{method} {path}: {error.code}: {error.read()[:300].decode(errors='replace')}") from error
        except (urllib.error.URLError, OSError) as error:
            raise StoryError(f"{method} {self.url}{path}: {error}") from error


def wait_for(what: str, ask: Callable[[], Any], *, timeout_s: float, every_s: float = 0.25) -> Any:
    """The first true answer; `StoryError` with the last trouble when time is up."""
    deadline = time.monotonic() + timeout_s
    trouble: object = "nothing yet"
    while True:
        try:
            answer = ask()
            if answer:
                return answer
            trouble = "not yet"
        except (StoryError, OSError, ValueError) as error:
            trouble = error
        if time.monotonic() > deadline:
            raise StoryError(f"waited {timeout_s:.0f} s for {what}; last answer: {trouble}")
        time.sleep(every_s)
