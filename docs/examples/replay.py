"""The site's application: replays a year of departures against Landreeve's public HTTP APIs.

    python replay.py --site EWR --data EWR.csv.gz --infer http://127.0.0.1:8410 --intake http://127.0.0.1:8411 \
        --token-file app.token --log EWR.csv

A separate program with nothing but the standard library, as a till or a scheduler on the site would be. Each
departure is sent for a prediction before it happens; while there is no model its row goes to the intake, so that one
can be trained. Its label follows when it would be known: 15 minutes after schedule, or later when the plane leaves
later. Commands come on stdin, one a line:

    until 2013-03-01T00:00:00Z    replay up to that moment, then print one JSON line
    speed 24                      event-hours for each second on the wall; 0 (the beginning) does not wait
    quit

Every departure has one id for ever and is sent again until it is answered, so nothing is lost and nothing counts
twice. The log has one line per departure; started again, the program goes on after the last one.
"""

import argparse
import csv
import gzip
import heapq
import http.client
import io
import json
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

MODEL = "flight-delay"
LOCAL = ZoneInfo("America/New_York")
LATE = timedelta(minutes=15)
TEXTS = ("carrier", "dest")
NUMBERS = (
    "distance", "weekday", "hour", "temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib",
)  # fmt: skip
RECENT_FROM, RECENT_TO = timedelta(hours=3), timedelta(hours=1)
BATCH = timedelta(hours=1)
# Without waiting an hour lasts a few milliseconds: labels then go out together four times a day.
HURRIED_BATCH = timedelta(hours=6)
BATCH_ROWS = 500
REQUEST_TIMEOUT_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
PATIENCE_S = 10.0
LOG_HEAD = "id,at,version,probability,label\n"


@dataclass(frozen=True, slots=True)
class Departure:
    """One planned departure, and what came of it: ``label`` is 1 when it left 15 minutes late or more, ``known``
    when that was certain."""

    id: str
    at: datetime
    row: dict[str, Any]
    label: int
    known: datetime


def read_departures(site: str, path: Path, every: int = 1) -> Iterator[Departure]:
    """Every ``every``-th departure of a site's file in order of time. The share of late departures lately is counted
    over all of them, as an airport knows them all."""
    everything = sorted(_read(path), key=lambda item: item[0])
    recent: deque[tuple[datetime, int]] = deque()
    waiting: deque[tuple[datetime, int]] = deque()
    late = 0
    for number, (at, texts, delay) in enumerate(everything):
        label = int(delay >= LATE)
        waiting.append((at, label))
        while waiting and waiting[0][0] < at - RECENT_TO:
            recent.append(waiting.popleft())
            late += recent[-1][1]
        while recent and recent[0][0] < at - RECENT_FROM:
            late -= recent.popleft()[1]
        if number % every == 0:
            row = _row(texts)
            if len(recent) >= 3:
                row["recent_late"] = late / len(recent)
            yield Departure(f"{site}-{number:06d}", at, row, label, max(at + LATE, at + delay))


def _read(path: Path) -> Iterator[tuple[datetime, dict[str, str], timedelta]]:
    with gzip.open(path, "rt", newline="") as lines:
        for texts in csv.DictReader(lines):
            local = datetime.fromisoformat(texts["scheduled"]).replace(tzinfo=LOCAL)
            yield local.astimezone(UTC), texts, timedelta(minutes=float(texts["dep_delay"]))


def _row(texts: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {name: texts[name] for name in TEXTS}
    row |= {name: float(texts[name]) for name in NUMBERS if texts[name]}
    return row


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")[:19] + "Z"


class RefusedError(Exception):
    """The server understood and said no; trying again would not help."""


class Server:
    """One kept-alive connection to one base URL; connects again by itself.

    Reads the little of HTTP/1.1 that a JSON answer needs: http.client takes longer for an answer's headers than the
    inference server for the prediction.
    """

    def __init__(self, url: str, token: str = "") -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._headers = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n"
        if token:
            self._headers += f"Authorization: Bearer {token}\r\n"
        self._socket: socket.socket | None = None
        self._answers: io.BufferedReader | None = None

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON answer; raises OSError or http.client.HTTPException when there was none."""
        data = json.dumps(body, separators=(",", ":")).encode()
        head = f"POST {path} HTTP/1.1\r\n{self._headers}Content-Length: {len(data)}\r\n\r\n"
        try:
            connection, answers = self._connected()
            connection.sendall(head.encode() + data)
            status, text = self._read(answers)
        except (OSError, LookupError, ValueError, http.client.HTTPException) as error:
            self.close()
            if isinstance(error, LookupError | ValueError):
                raise http.client.HTTPException(f"this is no HTTP answer: {error}") from error
            raise
        try:
            return status, json.loads(text) if text else None
        except ValueError:
            return status, text.decode(errors="replace")

    def _read(self, answers: io.BufferedReader) -> tuple[int, bytes]:
        status = answers.readline()
        if not status:
            raise http.client.RemoteDisconnected("the server closed the connection without an answer")
        length, keep = None, status.startswith(b"HTTP/1.1 ")
        while (line := answers.readline()).strip():
            name, _, value = line.lower().partition(b":")
            if name == b"content-length":
                length = int(value)
            elif name == b"connection":
                keep = keep and value.strip() != b"close"
            elif name == b"transfer-encoding":
                raise http.client.HTTPException("an answer in chunks, where one with its length was expected")
        text = answers.read(-1 if length is None else length)
        if length is not None and len(text) < length:
            raise http.client.IncompleteRead(text, length - len(text))
        if not keep or length is None:
            self.close()
        return int(status.split()[1]), text

    def _connected(self) -> tuple[socket.socket, io.BufferedReader]:
        if self._socket is None or self._answers is None:
            self._socket = socket.create_connection((self._host, self._port), REQUEST_TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._answers = self._socket.makefile("rb")
        return self._socket, self._answers

    def close(self) -> None:
        for part in (self._answers, self._socket):
            if part is not None:
                part.close()
        self._socket = self._answers = None


@dataclass
class Counts:
    """What happened since the last command."""

    sent: int = 0
    answered: int = 0
    collected: int = 0
    labelled: int = 0
    retries: int = 0
    times_us: list[int] = field(default_factory=list)

    def line(self, until: datetime) -> dict[str, Any]:
        times = sorted(self.times_us)
        at = lambda share: times[min(int(len(times) * share), len(times) - 1)] if times else None  # noqa: E731
        return {
            "until": rfc3339(until), "sent": self.sent, "answered": self.answered, "labelled": self.labelled,
            "collected": self.collected, "retries": self.retries, "p50_us": at(0.5), "p95_us": at(0.95),
        }  # fmt: skip


class Log:
    """``id,at,version,probability,label``, a line for each departure that was answered or collected."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last, self.answered = _mend(path)
        self._file = path.open("a", encoding="utf-8")

    def add(self, departure: Departure, version: str, probability: float | None) -> None:
        shown = "" if probability is None else repr(probability)
        self._file.write(f"{departure.id},{rfc3339(departure.at)},{version},{shown},{departure.label}\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _mend(path: Path) -> tuple[str, bool]:
    """Cut off a line that a kill left unfinished; the id of the last whole one, and whether a model ever answered."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1] or LOG_HEAD.encode()
    if whole != data:
        path.write_bytes(whole)
    last = whole.splitlines()[-1].decode().split(",")
    return ("", False) if last[0] == "id" else (last[0], last[2] != "")


class Application:
    """Sends departures and labels in the order in which an airport would know them."""

    def __init__(self, departures: Iterator[Departure], infer: Server, intake: Server, log: Log) -> None:
        self._infer, self._intake, self._log = infer, intake, log
        self._departures = _after(departures, log.last)
        self._next: Departure | None = next(self._departures, None)
        self._samples: list[dict[str, Any]] = []
        self._collected: list[Departure] = []
        self._labels: list[tuple[datetime, str, int]] = []
        self._due: list[dict[str, Any]] = []
        self._batch_end: datetime | None = None
        self._model_seen = log.answered
        self._absent_until: datetime | None = None
        self.speed = 0.0
        self.counts = Counts()

    def remember(self, logged: Iterator[Departure]) -> None:
        """After a restart: labels that became known in the last hours of the log may not have been sent. Sending
        one again is harmless."""
        departures = list(logged)
        sent = max((departure.at for departure in departures), default=None)
        for departure in departures:
            if sent is not None and departure.known > sent - 2 * HURRIED_BATCH:
                heapq.heappush(self._labels, (departure.known, departure.id, departure.label))

    def until(self, moment: datetime) -> dict[str, Any]:
        """Replay up to a moment of the year."""
        self.counts = Counts()
        began, origin = time.monotonic(), None
        while self._next is not None and self._next.at < moment:
            departure = self._next
            origin = origin or departure.at
            self._wait(began, departure.at - origin)
            self._turn_of_the_hour(departure.at)
            self._send(departure)
            self._next = next(self._departures, None)
        self._flush_until(moment)
        return self.counts.line(moment)

    def close(self) -> None:
        self._infer.close()
        self._intake.close()
        self._log.close()

    def _wait(self, began: float, passed: timedelta) -> None:
        if self.speed > 0:
            due = began + passed.total_seconds() / 3600 / self.speed
            time.sleep(max(0.0, due - time.monotonic()))

    def _turn_of_the_hour(self, now: datetime) -> None:
        """Once an hour of event time (less often in a hurry), what waited goes out together."""
        if self._batch_end is None or now >= self._batch_end:
            self._flush_until(now)
            self._batch_end = now + (BATCH if self.speed > 0 else HURRIED_BATCH)

    def _flush_until(self, now: datetime) -> None:
        self._flush_samples()
        while self._labels and self._labels[0][0] <= now:
            known, name, label = heapq.heappop(self._labels)
            self._due.append({"id": name, "label": label, "at": rfc3339(known)})
            if len(self._due) >= BATCH_ROWS:
                self._flush_labels()
        self._flush_labels()
        self._log.flush()

    def _send(self, departure: Departure) -> None:
        self.counts.sent += 1
        answer = self._predict(departure)
        heapq.heappush(self._labels, (departure.known, departure.id, departure.label))
        if answer is None:
            self._samples.append({"id": departure.id, "at": rfc3339(departure.at), "row": departure.row})
            self._collected.append(departure)
            if len(self._samples) >= BATCH_ROWS:
                self._flush_samples()
            return
        self._flush_samples()  # the log stays in order
        self.counts.answered += 1
        self._log.add(departure, *answer)

    def _predict(self, departure: Departure) -> tuple[str, float] | None:
        """Version and probability; None when there is no such model (yet)."""
        if self._absent_until is not None and departure.at < self._absent_until:
            return None
        began = time.perf_counter()
        status, answer = self._ask(departure)
        if status == http.client.NOT_FOUND:
            return None
        if status == 0:
            # Nobody listens where no model has ever been: look again in an hour, collecting meanwhile.
            self._absent_until = departure.at + BATCH
            return None
        self._model_seen = True
        self.counts.times_us.append(int((time.perf_counter() - began) * 1e6))
        return str(answer.get("model_version", "")), float(answer["outputs"][0]["data"][0])

    def _ask(self, departure: Departure) -> tuple[int, Any]:
        path, body = f"/v2/models/{MODEL}/infer", oip_request(departure)
        if not self._model_seen:
            try:
                status, answer = self._infer.post(path, body)
            except (OSError, http.client.HTTPException) as error:
                return 0, error
            if status == http.client.NOT_FOUND or _is_answer(status, path, answer):
                return status, answer
        status, answer = self._post(self._infer, path, body, absent_is_fine=True)
        patience = time.monotonic() + PATIENCE_S
        while status == http.client.NOT_FOUND and self._model_seen and time.monotonic() < patience:
            # A model that answered before is not gone: its server is starting.
            self.counts.retries += 1
            time.sleep(FIRST_PAUSE_S)
            status, answer = self._post(self._infer, path, body, absent_is_fine=True)
        self._model_seen = self._model_seen and status != http.client.NOT_FOUND
        return status, answer

    def _flush_samples(self) -> None:
        if not self._samples:
            return
        self._post(self._intake, f"/api/v1/models/{MODEL}/samples", {"samples": self._samples})
        self.counts.collected += len(self._samples)
        for departure in self._collected:
            self._log.add(departure, "", None)
        self._samples, self._collected = [], []

    def _flush_labels(self) -> None:
        if not self._due:
            return
        self._flush_samples()
        self._post(self._intake, f"/api/v1/models/{MODEL}/labels", {"labels": self._due})
        self.counts.labelled += len(self._due)
        self._due = []

    def _post(self, server: Server, path: str, body: dict[str, Any], absent_is_fine: bool = False) -> tuple[int, Any]:
        """Try until there is an answer; the same ids again are harmless."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                status, answer = server.post(path, body)
            except (OSError, http.client.HTTPException) as error:
                status, answer = 0, error
            if (status == http.client.NOT_FOUND and absent_is_fine) or _is_answer(status, path, answer):
                return status, answer
            self.counts.retries += 1
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)


def _is_answer(status: int, path: str, answer: Any) -> bool:
    """Whether the server did it; False when it is worth another try; `RefusedError` when it never will be."""
    if 400 <= status < 500 and status not in (408, 429):
        raise RefusedError(f"POST {path}: {status} {answer}")
    return status in (200, 202)


def oip_request(departure: Departure) -> dict[str, Any]:
    """The departure as an Open Inference Protocol v2 request: a tensor for each column that is known."""
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES" if name in TEXTS else "FP64", "data": [value]}
        for name, value in departure.row.items()
    ]
    return {"id": departure.id, "parameters": {"at": rfc3339(departure.at)}, "inputs": inputs}


def _after(departures: Iterator[Departure], last: str) -> Iterator[Departure]:
    return (departure for departure in departures if departure.id > last)


def main() -> int:
    options = _options()
    log = Log(options.log)
    token = options.token_file.read_text().strip()
    infer, intake = Server(options.infer), Server(options.intake, token)
    departures = read_departures(options.site, options.data, options.every)
    application = Application(departures, infer, intake, log)
    if log.last:
        done = read_departures(options.site, options.data, options.every)
        application.remember(d for d in done if d.id <= log.last)
    try:
        return serve(application, sys.stdin, sys.stdout)
    except RefusedError as error:
        print(f"the service refused a request, which needs a person: {error}", file=sys.stderr)
        return 1
    finally:
        application.close()


def serve(application: Application, commands: io.TextIOBase | Any, out: Any) -> int:
    """Carry out commands until ``quit`` or the end."""
    for line in commands:
        match line.split():
            case ["quit"]:
                return 0
            case ["speed", value]:
                application.speed = float(value)
            case ["until", text]:
                print(json.dumps(application.until(datetime.fromisoformat(text))), file=out, flush=True)
            case []:
                continue
            case _:
                print(f"unknown command {line.strip()!r}: until TIME, speed X or quit", file=sys.stderr)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True, help="name of the site, the first part of every id")
    parser.add_argument("--data", required=True, type=Path, help="the site's departures, gzip CSV")
    parser.add_argument("--infer", required=True, help="base URL of the inference server")
    parser.add_argument("--intake", required=True, help="base URL of the agent's API")
    parser.add_argument("--token-file", required=True, type=Path, help="file with the application's token")
    parser.add_argument("--log", required=True, type=Path, help="CSV of what was answered; also where to go on")
    parser.add_argument("--every", type=int, default=1, help="use each n-th departure: a shortened year")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
