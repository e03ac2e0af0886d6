"""Which doors stand open on this box, as its settings say. Imports little: what a door needs is imported with it."""

import hashlib
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.doors.child import Door
from landreeve_agent.inference import Hold, Inference, hold_port

if TYPE_CHECKING:
    from landreeve_agent.doors.connection import Server

_MACHINE_ID = Path("/etc/machine-id")
# Asked with name, host and wanted port: the port to begin with.
FirstPort = Callable[[str, str, int], int]


class Doors:
    """The doors besides HTTP. ``grpc`` is the port kept for the worker; ``problems`` are for people."""

    def __init__(self, settings: AgentSettings, first_port: FirstPort) -> None:
        self._settings = settings
        self.problems: tuple[str, ...] = ()
        self.grpc = self._hold_grpc(first_port) if settings.grpc.enabled else None

    @property
    def grpc_max_bytes(self) -> int:
        """The size of the largest gRPC request."""
        return int(self._settings.grpc.max_message_mb * 1e6)

    def ports(self) -> dict[str, int]:
        """For the file that tells the ports in use."""
        if self.grpc is None:
            return {}
        return {"grpc": self.grpc.address[1], "grpc_wanted": self._settings.grpc.port}

    def sentences(self) -> tuple[str, ...]:
        """Where the doors are, for the greeting."""
        settings, told = self._settings, []
        if self.grpc is not None:
            told.append("gRPC       {}:{}".format(*self.grpc.address))
        if settings.mqtt_inference.host:
            broker = settings.mqtt_inference
            told.append(f"MQTT       {broker.topic_prefix}/MODEL/request at {broker.host}:{broker.port}")
        if settings.batch.folder:
            told.append(f"files      {Path(settings.batch.folder) / 'MODEL' / 'in'}")
        return tuple(told)

    def rooms(self, inference: Inference, state: StateFolder) -> tuple[Door, ...]:
        """The doors that are processes of their own, to be kept by the supervisor."""
        found = []
        if self._settings.mqtt_inference.host:
            found.append(_mqtt_door(self._settings, inference, state))
        if self._settings.batch.folder:
            found.append(_batch_door(self._settings, inference, state))
        return tuple(found)

    def close(self) -> None:
        """Let the port go."""
        if self.grpc is not None:
            self.grpc.close()

    def _hold_grpc(self, first_port: FirstPort) -> Hold | None:
        host, wanted = self._settings.serving.host, self._settings.grpc.port
        if find_spec("grpc") is None:
            self.problems += ("grpc.enabled: gRPC is not installed; pip install 'landreeve[grpc]'",)
            return None
        try:
            hold = hold_port(host, first_port("grpc", host, wanted))
        except OSError as error:
            self.problems += (f"grpc.port: {error}",)
            return None
        if wanted not in (0, hold.address[1]):
            self.problems += (f"grpc.port {wanted} is busy: {hold.address[1]} is used instead",)
        return hold


def _mqtt_door(settings: AgentSettings, inference: Inference, state: StateFolder) -> Door:
    from landreeve_agent.doors.broker import BrokerOptions
    from landreeve_agent.doors.mqtt import MqttOptions

    wanted = settings.mqtt_inference
    broker = BrokerOptions(
        host=wanted.host, port=wanted.port, prefix=wanted.topic_prefix, client_id=_client_id(state),
        username=wanted.username, password_file=wanted.password_file, tls=wanted.tls, ca=wanted.ca,
    )  # fmt: skip

    def options() -> MqttOptions:
        server = _server(inference)
        return MqttOptions(server=server, broker=broker, queue=wanted.queue, parallel=wanted.parallel)

    return Door("mqtt", "landreeve_agent.doors.mqtt", options)


def _batch_door(settings: AgentSettings, inference: Inference, _state: StateFolder) -> Door:
    from landreeve_agent.doors.inbox import InboxOptions

    wanted = settings.batch

    def options() -> InboxOptions:
        return InboxOptions(
            server=_server(inference), folder=wanted.folder, poll_s=wanted.poll_s,
            settle_s=wanted.settle_s, rows=wanted.rows, keep_days=wanted.keep_days,
        )  # fmt: skip

    return Door("batch", "landreeve_agent.doors.inbox", options)


def _server(inference: Inference) -> "Server":
    """The inference server, as it is asked from this box."""
    from landreeve_agent.doors.connection import Server

    host, port = inference.address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - translated, not bound
    door = inference.door
    return Server(host, port, str(door.certificate or ""), str(door.tokens[0]) if door.tokens else "")


def _client_id(state: StateFolder) -> str:
    """A name that this site keeps and no other has: the broker keeps requests for it while it is away."""
    try:
        machine = _MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = socket.gethostname()
    return "landreeve-" + hashlib.sha256(f"{machine}\0{state.root}".encode()).hexdigest()[:12]
