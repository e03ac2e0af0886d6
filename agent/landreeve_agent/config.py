"""The agent's settings and the layout of its state folder."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from landreeve.settings import Loaded, load
from msgspec import Meta

from landreeve_agent.errors import StateError

SYSTEM_FILE = Path("/etc/landreeve/agent.toml")
SYSTEM_FOLDER = Path("/etc/landreeve/conf.d")

_DAY = "(mon|tue|wed|thu|fri|sat|sun)"
_WINDOW = f"^({_DAY}(-{_DAY})?(,{_DAY}(-{_DAY})?)* )?([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"
Port = Annotated[int, Meta(ge=0, le=65535)]


class Site(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(description="name of this site, shown to people")] = "this site"
    labels: Annotated[dict[str, str], Meta(description="labels the fleet can be filtered by")] = {}


class Serving(msgspec.Struct, frozen=True):
    host: Annotated[str, Meta(description="address the inference server listens on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port of the inference server; 0 takes any free one")] = 8410
    threads: Annotated[
        int, Meta(ge=0, le=1024, description="threads one model may use; 0 asks the hardware probe and the tuner")
    ] = 0
    device: Annotated[
        Literal["auto", "npu", "gpu", "cpu"],
        Meta(description="device a model should run on; where it cannot, the CPU serves and the reason is shown"),
    ] = "auto"
    memory_mb: Annotated[
        int, Meta(ge=0, le=10_000_000, description="MB all models may take; 0 takes three fifths of what is usable")
    ] = 0
    isolated: Annotated[
        tuple[str, ...], Meta(description="models that run in a process of their own; * means every model")
    ] = ()
    tls_cert: Annotated[
        str, Meta(description="certificate chain (PEM) for a host beyond this box; empty makes a self-signed one")
    ] = ""
    tls_key: Annotated[str, Meta(description="private key (PEM) of that certificate")] = ""


class HardwareSettings(msgspec.Struct, frozen=True):
    watch_s: Annotated[
        float, Meta(ge=0.2, le=86_400, description="seconds between two looks for devices that came or went")
    ] = 5.0
    prove_after_s: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds after the start before devices are proven by running on them")
    ] = 30.0
    override: Annotated[
        str, Meta(description="JSON file with parts of an inventory that replace what is found, for support and tests")
    ] = ""


class ConsoleSettings(msgspec.Struct, frozen=True):
    host: Annotated[str, Meta(description="address the console and the local API listen on")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port of the console and the local API; 0 takes any free one")] = 8411
    hosts: Annotated[
        tuple[str, ...], Meta(description="further host names under which the console may be asked for")
    ] = ()
    code_minutes: Annotated[int, Meta(ge=1, le=10_080, description="how long a one-time code stays valid")] = 60
    session_hours: Annotated[int, Meta(ge=1, le=720, description="how long a signed-in browser stays signed in")] = 12


class Telemetry(msgspec.Struct, frozen=True):
    interval_s: Annotated[float, Meta(ge=0.2, le=86_400, description="seconds between two rows of metrics")] = 60.0
    log_level: Annotated[str, Meta(description="lowest level that is logged: debug, info, warning, error")] = "info"


class LinkSettings(msgspec.Struct, frozen=True):
    reconnect_jitter_s: Annotated[
        float, Meta(ge=0, le=600, description="upper bound of the random wait before reconnecting to the hub")
    ] = 60.0
    renew_look_s: Annotated[
        float, Meta(ge=0.1, le=86_400, description="seconds between two looks whether the certificate is due")
    ] = 600.0
    renew_jitter_s: Annotated[
        float, Meta(ge=0, le=604_800, description="seconds over which boxes spread when the hub's authority is new")
    ] = 3600.0
    outbox_mb: Annotated[
        float, Meta(gt=0, le=10_240, description="size of the outbox above which metrics are dropped, oldest first")
    ] = 64.0


class TransferSettings(msgspec.Struct, frozen=True):
    mb_per_hour: Annotated[
        float, Meta(ge=0, description="megabytes of model files the line may carry in an hour, both ways; 0: no bound")
    ] = 0.0
    windows: Annotated[
        tuple[Annotated[str, Meta(pattern=_WINDOW)], ...],
        Meta(description="when model files may travel, such as '22:00-06:00' or 'sat,sun 00:00-00:00'; none: always"),
    ] = ()
    zone: Annotated[
        str,
        Meta(description="time zone of the windows and of times shown, such as Europe/Berlin; none: the machine's"),
    ] = ""


class IntakeSettings(msgspec.Struct, frozen=True):
    poll_s: Annotated[float, Meta(gt=0, le=60, description="seconds between two looks into the capture spool")] = 0.25
    keep_days: Annotated[
        float, Meta(ge=0, le=36_500, description="days of samples and labels kept, by their own time; 0 keeps all")
    ] = 400.0
    max_rows: Annotated[int, Meta(ge=1, le=100_000, description="most samples or labels in one request")] = 5000


class DriftSettings(msgspec.Struct, frozen=True):
    every_s: Annotated[float, Meta(ge=0.1, le=86_400, description="seconds between two looks for closed windows")] = 5.0


class TrainingSettings(msgspec.Struct, frozen=True):
    cron: Annotated[str, Meta(description="when to train by itself, as five cron fields; empty never does")] = ""
    lookback_days: Annotated[float, Meta(gt=0, description="days of samples a scheduled training looks back on")] = 90.0
    threads: Annotated[int, Meta(ge=0, le=1024, description="threads of the trainer; 0 leaves one core free")] = 0


class TuningSettings(msgspec.Struct, frozen=True):
    budget_s: Annotated[float, Meta(gt=0, le=3600, description="seconds the tuner may time plans of one release")] = 3.0
    deadline_s: Annotated[float, Meta(gt=0, le=7200, description="seconds after which preflight is given up")] = 180.0
    objective: Annotated[
        Literal["latency", "throughput"],
        Meta(description="what plans are chosen for: one row as soon as possible, or as many rows as possible"),
    ] = "latency"
    memory_mb: Annotated[
        float, Meta(ge=0, description="most MB a plan's own process may hold; 0 leaves it to the release's gate")
    ] = 0.0
    cold_start_s: Annotated[
        float, Meta(ge=0, description="most seconds a plan may take to be ready after a start; 0 sets no limit")
    ] = 0.0


class UpdateSettings(msgspec.Struct, frozen=True):
    judge_every_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="seconds between two looks at a version that is on probation")
    ] = 2.0


class FirmwareSettings(msgspec.Struct, frozen=True):
    slots_command: Annotated[
        str,
        Meta(description="executable that answers for this box's firmware slots (see docs/updates.md); empty: none"),
    ] = ""


class ScheduleSettings(msgspec.Struct, frozen=True):
    retention_s: Annotated[float, Meta(ge=1, description="seconds between two runs of retention")] = 3600.0
    garbage_s: Annotated[
        float, Meta(ge=1, description="seconds between two looks for model files that no version needs any more")
    ] = 900.0


class GrpcSettings(msgspec.Struct, frozen=True):
    enabled: Annotated[
        bool, Meta(description="whether the inference server also speaks gRPC (needs the extra grpc); see serving.host")
    ] = False
    port: Annotated[Port, Meta(description="port of the gRPC door; 0 takes any free one")] = 8412
    max_message_mb: Annotated[float, Meta(gt=0, le=1024, description="size of the largest gRPC request")] = 16.0


class MqttInferenceSettings(msgspec.Struct, frozen=True):
    host: Annotated[
        str, Meta(description="a broker on this site over which models may be asked; empty: none. Never the hub's")
    ] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="port of that broker")] = 1883
    username: Annotated[str, Meta(description="name to sign in to that broker with; empty: none")] = ""
    password_file: Annotated[str, Meta(description="file that holds the password for that broker")] = ""
    tls: Annotated[bool, Meta(description="whether that broker is spoken to over TLS")] = False
    ca: Annotated[
        str, Meta(description="file with the authority that vouches for that broker; empty: those of the system")
    ] = ""
    topic_prefix: Annotated[
        str, Meta(min_length=1, max_length=200, pattern="^[^+#\\x00]+$", description="what its topics begin with")
    ] = "landreeve"
    queue: Annotated[
        int, Meta(ge=1, le=65_535, description="requests that may wait; further ones are answered as busy")
    ] = 256
    parallel: Annotated[int, Meta(ge=1, le=64, description="requests that are asked at the same time")] = 4


class BatchSettings(msgspec.Struct, frozen=True):
    folder: Annotated[
        str, Meta(description="folder watched for files of rows, FOLDER/MODEL/in/*.csv or *.jsonl; empty: none")
    ] = ""
    poll_s: Annotated[float, Meta(ge=0.1, le=3600, description="seconds between two looks into the folder")] = 2.0
    settle_s: Annotated[
        float, Meta(ge=0, le=3600, description="seconds a file must stand still before it is taken as complete")
    ] = 5.0
    rows: Annotated[int, Meta(ge=1, le=4096, description="rows in one request")] = 256
    keep_days: Annotated[float, Meta(ge=0, le=3650, description="days files are kept after they were answered")] = 14.0


class AuditSettings(msgspec.Struct, frozen=True):
    checkpoint_s: Annotated[
        float, Meta(ge=0.5, le=86_400, description="seconds between two checkpoints of the audit log, sent to the hub")
    ] = 3600.0


class AtRestSettings(msgspec.Struct, frozen=True):
    key: Annotated[
        str, Meta(description="where the key of this state folder is: credential:NAME, file:/path, command:PROGRAM")
    ] = ""
    scratch: Annotated[
        str, Meta(description="folder on a tmpfs for rows and checkpoints of trainings; empty: in the state folder")
    ] = ""


class AgentSettings(msgspec.Struct, frozen=True):
    """Everything that can be set on a box."""

    site: Site = Site()
    serving: Serving = Serving()
    hardware: HardwareSettings = HardwareSettings()
    console: ConsoleSettings = ConsoleSettings()
    telemetry: Telemetry = Telemetry()
    link: LinkSettings = LinkSettings()
    transfer: TransferSettings = TransferSettings()
    intake: IntakeSettings = IntakeSettings()
    drift: DriftSettings = DriftSettings()
    training: TrainingSettings = TrainingSettings()
    tuning: TuningSettings = TuningSettings()
    update: UpdateSettings = UpdateSettings()
    firmware: FirmwareSettings = FirmwareSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    grpc: GrpcSettings = GrpcSettings()
    mqtt_inference: MqttInferenceSettings = MqttInferenceSettings()
    batch: BatchSettings = BatchSettings()
    audit: AuditSettings = AuditSettings()
    at_rest: AtRestSettings = AtRestSettings()


@dataclass(frozen=True)
class StateFolder:
    """Where everything of one site lives. The folder belongs to one user (0700)."""

    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "agent.toml"

    @property
    def database(self) -> Path:
        return self.root / "agent.db"

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def certificate(self) -> Path:
        return self.root / "keys" / "device.crt"

    @property
    def trust(self) -> Path:
        return self.root / "trust"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def definitions(self) -> Path:
        return self.root / "definitions"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def vault(self) -> Path:
        return self.root / "keys" / "vault.json"

    @property
    def hardware(self) -> Path:
        return self.root / "hardware.json"

    @property
    def ports(self) -> Path:
        return self.run / "ports.json"

    def prepare(self) -> None:
        """Make the folders that are missing; `StateError` when the folder cannot be used."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if stat.S_IMODE(self.root.stat().st_mode) & 0o077:
                self.root.chmod(0o700)
            for name in ("keys", "trust", "blobs", "models", "definitions", "spool", "tokens", "training", "run"):
                (self.root / name).mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"state folder {self.root}: {error.strerror}; choose a folder this user owns with --state"
            ) from error


def default_state() -> Path:
    """Where the state lives when nobody says: the service's folder for root, else the user's own."""
    if os.environ.get("LANDREEVE_STATE"):
        return Path(os.environ["LANDREEVE_STATE"])
    if os.geteuid() == 0:
        return Path("/var/lib/landreeve")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "landreeve"


def load_settings(state: StateFolder, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded[AgentSettings]:
    """The box's settings: defaults, system files, the state folder's file, environment, flags.

    Raises `landreeve.settings.SettingsError`.
    """
    system = sorted(SYSTEM_FOLDER.glob("*.toml")) if SYSTEM_FOLDER.is_dir() else []
    files = [SYSTEM_FILE, *system, state.settings_file]
    return load(AgentSettings, files=files, prefix="LANDREEVE", environ=environ, flags=flags)
