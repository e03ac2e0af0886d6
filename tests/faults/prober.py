"""An application of the site: asks for one prediction after another, and notes when it got no correct answer."""

import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.agent.onnx_models import body

PAUSE_S = 0.02
LATE_S = 1.0
"""An answer that takes longer has kept its caller waiting: the whole of it counts as not served."""
PATIENCE_S = 3.0


def asked_rows(count: Any) -> tuple[Any, Any]:
    """Hour and wind of the request of that number, or of an array of numbers."""
    return count * 0.37 % 24.0, count * 0.37 % 12.0


@dataclass
class Prober:
    """``answered`` are the ids of requests that were answered, each with the version that answered;
    ``serves`` is the version of the last of them."""

    site: Path
    model: str
    answered: dict[str, str] = field(default_factory=dict)
    serves: str = ""
    wrong: int = 0
    not_serving_s: float = 0.0
    last_error: str = ""
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _count: int = 0
    _port: int = 0

    def port(self) -> int:
        """Of the inference server; between two agents, as an application knows it, that of the last."""
        try:
            self._port = int(json.loads((self.site / "run" / "ports.json").read_text())["serving"])
        except FileNotFoundError:
            if not self._port:
                raise
        return self._port

    def start(self) -> None:
        self._done.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __str__(self) -> str:
        alive = self._thread is not None and self._thread.is_alive()
        return f"{self._count} asked, {self.wrong} without an answer, now {self.serves!r} {self.last_error} {alive=}"

    def _run(self) -> None:
        began = time.monotonic()  # of the first request since the last correct answer
        while not self._done.wait(PAUSE_S):
            asked = time.monotonic()
            self._count += 1
            name = f"p-{self._count}"
            try:
                self.answered[name] = self.serves = self._ask(name)
                ended = time.monotonic()
                broken = ended - asked > LATE_S or began < asked - 2 * PAUSE_S - LATE_S or self.last_error
                self.not_serving_s += ended - min(began, asked) if broken else 0.0
                began, self.last_error = ended, ""
            except (OSError, ValueError, KeyError, urllib.error.URLError) as error:
                self.wrong += 1
                self.last_error = f"{type(error).__name__}: {error}"
        if self.last_error:
            self.not_serving_s += time.monotonic() - began

    def _ask(self, name: str) -> str:
        """Which version answered; ValueError when the answer is no probability."""
        url = f"http://127.0.0.1:{self.port()}/v2/models/{self.model}/infer"
        asked: dict[str, Any] = body(id=name)
        for tensor, value in zip(asked["inputs"], asked_rows(self._count), strict=False):
            tensor["data"] = [value]
        request = urllib.request.Request(url, json.dumps(asked).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310 - our own loopback URL
            told: dict[str, Any] = json.loads(answer.read())
        value = told["outputs"][0]["data"][0]
        if told["id"] != name or not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: answered {told['id']} with {value}")
        return str(told["model_version"])
