"""How the supervisor serves: its patience with the worker, and what the worker is started with."""

from dataclasses import dataclass, field
from pathlib import Path

from landreeve_agent.serving.control import NO_SECRETS, Secrets
from landreeve_agent.serving.replacing import Pace


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and counts of the supervision. ``loop_crashes`` within ``loop_window_s`` make a crash loop. ``pace`` says
    how often a worker may be replaced while it serves, ``retry`` how often its own plans are tried again after one."""

    start_s: float = 20.0
    apply_s: float = 120.0
    stop_s: float = 5.0
    hang_s: float = 10.0
    ask_every_s: float = 2.0
    loop_crashes: int = 3
    loop_window_s: float = 60.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    leave_s: float = 10.0
    pace: Pace = field(default_factory=Pace)
    retry: Pace = field(default_factory=lambda: Pace(first_s=600.0, most_s=21_600.0))


@dataclass(frozen=True, slots=True)
class Options:
    """How the worker serves. ``memory_mb`` is for all models together, 0 a share of what is usable. With ``tls_cert``
    and ``tls_key`` (PEM files) it speaks TLS only; ``tokens`` are files with a token callers must send. ``grpc`` is the
    address it answers gRPC on too, bound and held by the caller; ``secrets`` are those of a sealed site; ``stuck_s`` is
    after how long a run counts as one that never ends."""

    memory_mb: int = 0
    max_body_bytes: int | None = None
    tokens: tuple[Path, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    grpc: tuple[str, int] | None = None
    grpc_max_bytes: int | None = None
    secrets: Secrets = NO_SECRETS
    stuck_s: float | None = None

    def arguments(self) -> list[str]:
        """As the worker's command line takes them. Tokens go by file: an argument can be read by every program."""
        given = ["--memory-mb", str(self.memory_mb)]
        for token in self.tokens:
            given += ["--token", str(token)]
        if self.grpc is not None:
            given += ["--grpc-host", self.grpc[0], "--grpc-port", str(self.grpc[1])]
        for name, value in (
            ("--grpc-max-bytes", self.grpc_max_bytes), ("--stuck-s", self.stuck_s),
            ("--max-body-bytes", self.max_body_bytes), ("--tls-cert", self.tls_cert), ("--tls-key", self.tls_key)
        ):  # fmt: skip
            given += [name, str(value)] if value is not None else []
        return given
