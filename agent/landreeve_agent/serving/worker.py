"""The worker process: ``python -m landreeve_agent.serving.worker --fd N --spool DIR --parent PID``.

Its stdin and stdout are the supervisor's pipe (`landreeve_agent.serving.control`); the listening socket is
inherited. It exits when stdin ends. Everything that may crash in native code lives here and in its kin, never in
the supervisor.
"""

import argparse
import asyncio
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from landreeve_agent.serving.access import Access, read_access, tls_context
from landreeve_agent.serving.batcher import STUCK_S
from landreeve_agent.serving.capture import Spool
from landreeve_agent.serving.control import (
    Applied,
    Apply,
    Ask,
    FromWorker,
    Hello,
    Leave,
    Lost,
    Refused,
    Secrets,
    Told,
    ToWorker,
    Version,
    frame,
    read_frame,
)
from landreeve_agent.serving.deathsig import die_with_parent, prefer_for_oom
from landreeve_agent.serving.errors import LoadFailedError
from landreeve_agent.serving.http import DEFAULT_BODY_BYTES
from landreeve_agent.serving.lanes import Lanes, residences
from landreeve_agent.serving.memory import Memory, budget_bytes, rss_bytes, usable_bytes
from landreeve_agent.serving.metrics import Metrics
from landreeve_agent.serving.recorder import Recorder
from landreeve_agent.serving.repository import Repository
from landreeve_agent.serving.routes import Routes
from landreeve_agent.serving.server import InferenceServer

if TYPE_CHECKING:
    from landreeve.sealed.lines import LineSealer

    from landreeve_agent.serving.grpc_server import GrpcDoor

_DRAIN_S = 2.0
_COLLECT_AFTER = 50_000


class Worker:
    """Carries out what the supervisor says."""

    def __init__(
        self, lanes: Lanes, routes: Routes, metrics: Metrics, server: InferenceServer, memory: Memory, *,
        listening: socket.socket, grpc: "GrpcDoor | None" = None,
    ) -> None:  # fmt: skip
        self._lanes = lanes
        self._routes = routes
        self._metrics = metrics
        self._server = server
        self._memory = memory
        self._listening: socket.socket | None = listening
        self._grpc = grpc
        self._applying = asyncio.Lock()

    async def obey(self, message: ToWorker) -> FromWorker:
        """Carry out one message; the answer to it."""
        if isinstance(message, Ask):
            return self._tell(message.seq)
        if isinstance(message, Leave):
            if self._grpc is not None:
                await self._grpc.stop(message.patience_s)
            await self._server.leave(message.patience_s)
            return Applied(seq=message.seq)
        async with self._applying:
            try:
                await self._apply(message)
            except LoadFailedError as error:
                return Refused(seq=message.seq, cause=error.cause, sentence=error.sentence)
        return Applied(seq=message.seq)

    def _tell(self, seq: int) -> Told:
        served = [serving for _, serving in sorted(self._routes.table.items())]
        return Told(
            seq=seq,
            rss_mb=round(rss_bytes() / 1e6, 1),
            models=tuple(msgspec.structs.replace(s.status(), residents=residences(s)) for s in served),
            counts=self._metrics.counts(),
            held_mb=round(self._memory.held_bytes / 1e6, 1),
            limit_mb=round(self._memory.limit_bytes / 1e6, 1),
            stuck=self._lanes.stuck,
        )

    async def _apply(self, message: Apply) -> None:
        await self._lanes.apply(message.routes, lenient=message.lenient)
        _settle()
        if self._listening is not None:
            # Only now: until the first routes stand, callers wait in the socket's backlog instead of failing.
            listening, self._listening = self._listening, None
            await self._server.start(listening)
            if self._grpc is not None:
                await _open(self._grpc)


async def _open(grpc: "GrpcDoor") -> None:
    """Listen for gRPC too; HTTP goes on without it when that fails."""
    try:
        port = await grpc.start()
    except LoadFailedError as error:
        sys.stderr.write(f"{error.sentence}\n")
    else:
        sys.stderr.write(f"gRPC is answered on port {port}\n")


def _settle() -> None:
    """Take what has just been loaded out of the collector's sight.

    A request makes no reference cycles, yet every few hundred of them start a collection that walks all modules
    and models: a third of the CPU of a small request, measured.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


async def _pipe(stdin: int, stdout: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(stdin, "rb", 0))
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(stdout, "wb", 0))
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


async def _serve(options: argparse.Namespace, stdin: int, stdout: int) -> None:
    reader, writer = await _pipe(stdin, stdout)
    metrics = Metrics()
    secrets = _secrets(options.secrets)
    spool = Spool(Path(options.spool), time.time_ns(), sealer=_sealer(secrets))
    routes = Routes(spool, metrics, stuck_s=options.stuck_s)
    memory = Memory(budget_bytes(options.memory_mb, usable_bytes(Path("/"))))

    def lost(version: Version, cause: str, restarts: int) -> None:
        writer.write(frame(Lost(model=version.model, version=version.version, cause=cause, restarts=restarts)))

    lanes = Lanes(routes, memory, lost, secrets.files.files(), Recorder(options.recorder))
    repository, access = Repository(lanes, routes, metrics, memory), read_access(options.token)
    server = InferenceServer(
        routes, metrics, repository, access,
        tls=tls_context(options.tls_cert, options.tls_key) if options.tls_cert else None,
        max_body_bytes=options.max_body_bytes,
    )  # fmt: skip
    grpc = _grpc(options, routes, repository, access)
    worker = Worker(lanes, routes, metrics, server, memory, listening=socket.socket(fileno=options.fd), grpc=grpc)
    writer.write(frame(Hello(pid=os.getpid())))
    await _obey_all(worker, reader, writer)
    if grpc is not None:
        await grpc.stop(_DRAIN_S)
    await server.stop(_DRAIN_S)
    await asyncio.to_thread(lanes.close)
    spool.close()
    if lanes.stuck:
        os._exit(0)  # Python would wait for their threads for ever


def _secrets(descriptor: int) -> Secrets:
    """What the supervisor's pipe holds; nothing on a plain site."""
    if descriptor < 0:
        return Secrets()
    with os.fdopen(descriptor, "rb") as pipe:
        return msgspec.json.decode(pipe.read(), type=Secrets)


def _sealer(secrets: Secrets) -> "LineSealer | None":
    """What seals the spool's lines."""
    if not secrets.spool:
        return None
    from landreeve.sealed.lines import LineSealer

    return LineSealer({name: bytes.fromhex(key) for name, key in secrets.spool.items()})


def _grpc(options: argparse.Namespace, routes: Routes, repository: Repository, access: Access) -> "GrpcDoor | None":
    """The gRPC door, if it is wanted; only then is grpcio imported, which takes 15 MB."""
    if not options.grpc_host:
        return None
    try:
        from landreeve_agent.serving.grpc_server import GrpcDoor, GrpcOptions
    except ImportError as error:
        sys.stderr.write(f"gRPC is not answered: {error}; pip install 'landreeve[grpc]'\n")
        return None
    where = GrpcOptions(options.grpc_host, options.grpc_port, options.grpc_max_bytes, options.tls_cert, options.tls_key)
    return GrpcDoor(routes, repository, access, where)


async def _obey_all(worker: Worker, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the supervisor until it hangs up."""
    decoder: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)
    tasks: set[asyncio.Task[None]] = set()

    async def answer(message: ToWorker) -> None:
        writer.write(frame(await worker.obey(message)))

    while (message := await read_frame(reader, decoder)) is not None:
        task = asyncio.create_task(answer(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _own_stdout() -> int:
    """A private copy of stdout for frames; what a library prints goes to stderr and cannot break a frame."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:  # no uvloop on this system: the standard loop serves as well, slower
        asyncio.run(main)
    else:
        uvloop.run(main)


def main() -> None:
    """Run until stdin ends."""
    parser = argparse.ArgumentParser(prog="landreeve-worker")
    parser.add_argument("--fd", type=int, required=True, help="the inherited listening socket")
    parser.add_argument("--spool", required=True, help="folder for captured rows")
    parser.add_argument("--parent", type=int, required=True, help="the supervisor's process id")
    parser.add_argument("--max-body-bytes", type=int, default=DEFAULT_BODY_BYTES)
    parser.add_argument("--memory-mb", type=int, default=0, help="for all models; 0 takes a share of what is usable")
    parser.add_argument("--token", action="append", default=[], help="file with a token that callers must send")
    parser.add_argument("--tls-cert", default="", help="certificate chain (PEM); with it the server speaks TLS only")
    parser.add_argument("--tls-key", default="", help="its private key (PEM)")
    parser.add_argument("--grpc-host", default="", help="answer gRPC on this address too")
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--grpc-max-bytes", type=int, default=DEFAULT_BODY_BYTES)
    parser.add_argument("--stuck-s", type=float, default=STUCK_S, help="when a run counts as one that never ends")
    parser.add_argument("--recorder", type=int, default=-1, help="inherited memory that says what runs")
    parser.add_argument("--secrets", type=int, default=-1, help="an inherited pipe with the keys of a sealed site")
    options = parser.parse_args()
    die_with_parent(options.parent)
    prefer_for_oom()
    # Of the dying thread alone: the others may run on, and to read their stacks would be a second fault.
    faulthandler.enable(all_threads=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the site's rows
    stdout = _own_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor ends us in order
    _run(_serve(options, os.dup(0), stdout))


if __name__ == "__main__":
    main()
