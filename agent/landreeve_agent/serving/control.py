"""What supervisor and worker say to each other over the worker's own pipes.

A frame is 4 bytes big-endian length, then msgspec JSON. No port, no shared state: it works on every OS, and a
worker whose pipe closes knows that its supervisor is gone. This module is imported by the supervisor, so it
knows no runtime.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from landreeve.blobs.files import Opening

CERTIFICATE, KEY = "serving.crt", "serving.key"  # of the inference server, in the state folder's keys
MAX_FRAME_BYTES = 16 * 1024 * 1024
_LENGTH_BYTES = 4
_PIECE_BYTES = 16 * 1024
_LINE_BYTES = 2000
_LET_GO_S = 1.0
T = TypeVar("T")


class BadFrameError(ValueError):
    """Bytes on a pipe that are no frame of ours."""


class Plan(msgspec.Struct, frozen=True):
    """How a graph runs on this box: chosen by `landreeve_agent.tuning`, carried out by the worker's session.

    ``backend`` is ``onnxruntime`` or ``openvino``; ``device`` ``cpu``, ``gpu`` or ``npu``; ``precision`` ``fp32``,
    ``bf16``, ``fp16``, ``int8`` or ``int4``. ``recipe`` is how the plan's graph was made of the release's: empty for
    the release's own, else ``qdq``, ``dynamic``, ``weights8``, ``weights4`` or ``nncf``. ``streams`` runs may go on
    at once; ``batch`` is how many waiting rows may be joined into one run (1 = none). ``wanted`` is what was asked
    for (``auto``, ``npu``, ``gpu``, ``cpu``) and ``reason`` why the plan is not that.
    """

    backend: str = "onnxruntime"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1
    batch: int = 1
    graph: str = "model.onnx"
    wanted: str = "auto"
    reason: str = ""
    streams: int = 1
    recipe: str = ""

    @property
    def name(self) -> str:
        """The plan in words, unique among the candidates of one box."""
        threads = f"{self.threads} thread" if self.threads == 1 else f"{self.threads} threads"
        streams = "" if self.streams == 1 else f" {self.streams} streams"
        recipe = f" {self.recipe}" if self.recipe else ""
        return f"{self.backend} {self.device} {self.precision}{recipe} {threads}{streams}"


class Version(msgspec.Struct, frozen=True):
    """One release of a model, materialised in ``folder``, with the plan to run it by; ``isolated`` in a process of
    its own."""

    model: str
    version: str
    release: str
    folder: str
    plan: Plan = Plan()
    isolated: bool = False


class Share(msgspec.Struct, frozen=True):
    """A version that answers a share (0 to 1) of a model's requests in place of the active one."""

    version: Version
    share: float


class Route(msgspec.Struct, frozen=True):
    """Who answers for a model. The shadow sees the same rows; its answers are captured, never returned. Each of
    ``shares`` answers its part of the requests, the active version all others: a canary, or an A/B test that is sticky
    by ``key``: that column of the request where it names one, else the request's own key."""

    model: str
    active: Version
    shadow: Version | None = None
    shares: tuple[Share, ...] = ()
    key: str = ""


class Residence(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded version and its memory. ``state`` is ``awake``, ``asleep`` (its memory was needed; the next request
    wakes it), ``unloaded`` (by hand) or ``failed``; ``reason`` says why. ``pid`` is 0 unless the version runs in a
    process of its own; ``restarts`` and ``last_exit`` are that process's."""

    version: str
    role: str
    state: str
    reason: str = ""
    memory_mb: float = 0.0
    loads: int = 0
    pid: int = 0
    restarts: int = 0
    last_exit: str = ""


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker does for one model: what was wanted, what is used, and why they differ."""

    model: str
    version: str
    release: str
    wanted: str
    used: str
    reason: str
    ready: bool
    precision: str = ""
    shadow: str = ""
    residents: tuple[Residence, ...] = ()
    doubted: bool = False  # a run failed on its accelerator, and whether that is lost is being found out


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the worker started."""

    requests: int = 0
    rows: int = 0
    errors: int = 0
    shadow_failures: int = 0
    capture_failures: int = 0


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker of a sealed site gets through a pipe of its own: the capture spool's keys as hex, by id, and what
    opens the files of releases."""

    spool: dict[str, str] = {}
    files: Opening = Opening()

    def __repr__(self) -> str:
        return f"Secrets({self.files!r})"  # never the keys: it may end in a log


NO_SECRETS = Secrets()


class Apply(msgspec.Struct, frozen=True, kw_only=True, tag="apply"):
    """Serve exactly these routes. ``lenient`` (after a restart): serve what loads and report the rest."""

    seq: int
    routes: tuple[Route, ...]
    lenient: bool = False


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """Say how you are."""

    seq: int


class Leave(msgspec.Struct, frozen=True, kw_only=True, tag="leave"):
    """Another worker takes over: accept no more, answer what comes on open connections and close them after it; those
    that stay idle for ``patience_s`` are closed. Answered by `Applied`."""

    seq: int
    patience_s: float


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The worker is up and waits for its routes."""

    pid: int


class Applied(msgspec.Struct, frozen=True, kw_only=True, tag="applied"):
    """The routes serve."""

    seq: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The routes do not serve; those before go on."""

    seq: int
    cause: str
    sentence: str


class Told(msgspec.Struct, frozen=True, kw_only=True, tag="told"):
    """How the worker is. ``held_mb`` of the ``limit_mb`` for models are taken; ``stuck`` names versions, wanted or not,
    with a run that never comes back."""

    seq: int
    rss_mb: float
    models: tuple[ModelStatus, ...]
    counts: Counts
    held_mb: float = 0.0
    limit_mb: float = 0.0
    stuck: tuple[str, ...] = ()


class Lost(msgspec.Struct, frozen=True, kw_only=True, tag="lost"):
    """A model's own process ended and is being started again; told unasked."""

    model: str
    version: str
    cause: str
    restarts: int


ToWorker = Apply | Ask | Leave
FromWorker = Hello | Applied | Refused | Told | Lost


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The supervisor's view of the worker. ``pid`` is 0 and ``rss_mb`` 0 while it is being restarted."""

    pid: int
    rss_mb: float
    restarts: int
    models: tuple[ModelStatus, ...]
    last_exit: str
    counts: Counts = Counts()
    held_mb: float = 0.0
    limit_mb: float = 0.0


def frame(message: object) -> bytes:
    """The message as one frame."""
    body = msgspec.json.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrameError(f"a frame of {len(body)} bytes is above the limit of {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read_frame(reader: asyncio.StreamReader, decoder: msgspec.json.Decoder[T]) -> T | None:
    """The next message, or None at the end of the stream (also inside a frame: its writer died)."""
    try:
        head = await reader.readexactly(_LENGTH_BYTES)
        length = int.from_bytes(head, "big")
        if length > MAX_FRAME_BYTES:
            raise BadFrameError(f"a frame of {length} bytes is above the limit of {MAX_FRAME_BYTES}")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return None
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadFrameError(f"no message of ours: {error}") from error


async def read_lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """The lines a child writes to its stderr, long ones cut to 2000 characters.

    Not `StreamReader.readline`: it raises at 64 KiB, and a pipe that nobody reads stops its writer.
    """
    rest = b""
    while piece := await reader.read(_PIECE_BYTES):
        *lines, rest = (rest + piece).split(b"\n")
        rest = rest[:_PIECE_BYTES]
        for line in lines:
            yield line[:_LINE_BYTES].decode(errors="replace").rstrip()
    if rest:
        yield rest[:_LINE_BYTES].decode(errors="replace").rstrip()


async def let_go(process: asyncio.subprocess.Process) -> None:
    """Close the pipes of a child that has ended.

    asyncio closes its side only when every pipe has reached its end *and* been read to it; one that was left open
    would warn, or leak, at some later collection.
    """
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(_LET_GO_S):  # a grandchild may hold a pipe open for ever
            if process.stdin is not None:
                process.stdin.close()
            if process.stdout is not None:
                await process.stdout.read()
            if process.stdin is not None:
                await process.stdin.wait_closed()
    await asyncio.sleep(0)
