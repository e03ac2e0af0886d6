"""The hub's settings and the layout of its state folder."""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from landreeve.settings import Loaded, load
from msgspec import Meta

from landreeve_hub.errors import StateError

SYSTEM_FILE = Path("/etc/landreeve/hub.toml")

Port = Annotated[int, Meta(ge=0, le=65535)]


class Http(msgspec.Struct, frozen=True):
    """The console and the API for people."""

    host: Annotated[str, Meta(description="address the console and the API listen on, in plain HTTP")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port of the console and the API; 0 takes any free one")] = 8600
    hosts: Annotated[tuple[str, ...], Meta(description="further host names under which the hub may be asked for")] = ()


class Https(msgspec.Struct, frozen=True):
    """Enrolment, and the API, with a certificate of the hub's own authority."""

    host: Annotated[str, Meta(description="address enrolment listens on; 0.0.0.0 for devices elsewhere")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port of enrolment; 0 takes any free one")] = 8643
    name: Annotated[
        str, Meta(description="name or address by which devices reach this hub, for enrolment and for the broker")
    ] = "127.0.0.1"


class BrokerSettings(msgspec.Struct, frozen=True):
    """The MQTT broker."""

    kind: Annotated[
        Literal["auto", "mosquitto", "nats"], Meta(description="which broker to run; auto takes mosquitto, else nats")
    ] = "auto"
    bind: Annotated[str, Meta(description="address the broker listens on; 0.0.0.0 for devices elsewhere")] = "127.0.0.1"
    port: Annotated[Port, Meta(description="port of the broker; 0 takes any free one")] = 8883
    url: Annotated[
        str,
        Meta(description="mqtts://host:port of a broker that runs elsewhere and believes this hub's authority"),
    ] = ""
    self_test: Annotated[
        bool, Meta(description="whether the broker is tried at each of its starts, as a bad device would")
    ] = True


class StoreSettings(msgspec.Struct, frozen=True):
    """Where the tables are."""

    url: Annotated[str, Meta(description="SQLAlchemy URL of the database; empty keeps SQLite in the state folder")] = ""


class Transfer(msgspec.Struct, frozen=True):
    """Artifacts over MQTT."""

    mb_per_s: Annotated[float, Meta(gt=0, le=10_000, description="megabytes a second sent to all devices together")] = (
        20.0
    )
    quota_mb: Annotated[float, Meta(gt=0, description="megabytes a day one device may upload")] = 1024.0
    delta_cache_mb: Annotated[
        float, Meta(ge=0, description="megabytes of deltas between releases kept; 0 makes none and sends all whole")
    ] = 512.0


class LineSettings(msgspec.Struct, frozen=True):
    """What every site's line may carry of artifacts, in place of the site's own settings."""

    mb_per_hour: Annotated[
        float, Meta(ge=0, description="megabytes an hour each site may spend on artifacts; 0 leaves it to the site")
    ] = 0.0
    windows: Annotated[
        tuple[str, ...],
        Meta(description="when artifacts may travel, in each site's time: '22:00-06:00'; none leaves it to the site"),
    ] = ()


class Pace(msgspec.Struct, frozen=True):
    """How often the hub looks."""

    rollout_s: Annotated[float, Meta(ge=0.05, le=60, description="seconds between two looks at running rollouts")] = 1.0
    learning_s: Annotated[float, Meta(ge=0.05, le=600, description="seconds between two looks for retraining")] = 2.0
    checkpoint_s: Annotated[
        float, Meta(ge=0.5, le=86_400, description="seconds between two checkpoints of the audit log")
    ] = 3600.0


class KeepSettings(msgspec.Struct, frozen=True):
    """What is forgotten in time."""

    facts_days: Annotated[float, Meta(ge=0, description="days the text of facts is kept; 0 keeps for ever")] = 90.0
    metrics_days: Annotated[float, Meta(ge=0, description="days of metrics kept; 0 keeps for ever")] = 90.0
    log_days: Annotated[float, Meta(ge=0, description="days of the sites' log lines kept; 0 keeps for ever")] = 30.0
    withdrawn_days: Annotated[
        float, Meta(ge=0, description="days the files of withdrawn releases that nothing needs are kept; 0 for ever")
    ] = 30.0
    orphan_hours: Annotated[
        float, Meta(ge=1, description="hours files that belong to no release are kept: of a push or upload cut short")
    ] = 24.0


class Limits(msgspec.Struct, frozen=True):
    """What devices are held to."""

    facts_per_s: Annotated[float, Meta(ge=0, description="facts a second asked of each device; 0 sets no limit")] = 0.0


class EnrolmentSettings(msgspec.Struct, frozen=True):
    """How boxes come in, and how long what they are given is good."""

    approval: Annotated[
        bool, Meta(description="whether a person must approve every box that joins, by its key's fingerprint")
    ] = False
    certificate_days: Annotated[
        float, Meta(gt=0, le=825, description="days a device's certificate is good; renewed when a third is left")
    ] = 90.0
    recover_days: Annotated[
        float, Meta(ge=0, le=3650, description="days after expiry in which a device may still renew with its old key")
    ] = 180.0


class AtRestSettings(msgspec.Struct, frozen=True):
    """Encryption of what lies on the disk."""

    key: Annotated[
        str, Meta(description="where the key of this state folder is: credential:NAME, file:/path, command:PROGRAM")
    ] = ""


class HubSettings(msgspec.Struct, frozen=True):
    """Everything that can be set at a hub."""

    fleet: Annotated[str, Meta(description="name of the fleet, part of every topic; keep it once devices are in")] = (
        "main"
    )
    http: Http = Http()
    https: Https = Https()
    broker: BrokerSettings = BrokerSettings()
    store: StoreSettings = StoreSettings()
    transfer: Transfer = Transfer()
    line: LineSettings = LineSettings()
    pace: Pace = Pace()
    limits: Limits = Limits()
    keep: KeepSettings = KeepSettings()
    at_rest: AtRestSettings = AtRestSettings()
    enrolment: EnrolmentSettings = EnrolmentSettings()


@dataclass(frozen=True)
class HubFolder:
    """Where everything of one hub lives. The folder belongs to one user (0700)."""

    root: Path

    @property
    def settings_file(self) -> Path:
        return self.root / "hub.toml"

    @property
    def database(self) -> Path:
        return self.root / "hub.db"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def deltas(self) -> Path:
        return self.root / "deltas"

    @property
    def broker(self) -> Path:
        return self.root / "broker"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def ports(self) -> Path:
        return self.run / "ports.json"

    @property
    def admin_token(self) -> Path:
        return self.run / "admin-token"

    @property
    def work(self) -> Path:
        return self.run / "work"

    def prepare(self) -> None:
        """Make the folders that are missing; `StateError` when the folder cannot be used."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if stat.S_IMODE(self.root.stat().st_mode) & 0o077:
                self.root.chmod(0o700)
            for folder in (self.keys, self.blobs, self.deltas, self.broker, self.run, self.work):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"state folder {self.root}: {error.strerror}; choose a folder this user owns with --state"
            ) from error


@dataclass(frozen=True)
class HubConfig:
    """What a hub is started with."""

    folder: HubFolder
    settings: HubSettings

    @property
    def store_url(self) -> str:
        return self.settings.store.url or str(self.folder.database)


def load_settings(folder: HubFolder, environ: Mapping[str, str], flags: Mapping[str, str]) -> Loaded[HubSettings]:
    """The hub's settings: defaults, system file, the state folder's file, environment, flags.

    Raises `landreeve.settings.SettingsError`.
    """
    return load(
        HubSettings, files=[SYSTEM_FILE, folder.settings_file], prefix="LANDREEVE", environ=environ, flags=flags
    )


def load_config(state: Path, flags: Mapping[str, str]) -> HubConfig:
    """Settings and state folder for this process."""
    folder = HubFolder(state.absolute())
    return HubConfig(folder, load_settings(folder, os.environ, flags).values)
