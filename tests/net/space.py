"""Two network namespaces with a line between them, and the processes that live there."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from landreeve_hub.fleet.authority import Authority

from tests.net.line import DEVICE

HERE = Path(__file__).resolve().parent


def missing() -> str:
    """Why no namespace can be made here; "" when one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if shutil.which("ip") is None:
        return "the command ip is missing: apt-get install iproute2"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun here"
    name = f"lr-try-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespace may be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return ""


class Child:
    """A process in a namespace that is asked and answers line by line."""

    def __init__(self, namespace: str | None, script: str, *words: str, log: Path) -> None:
        into = ["ip", "netns", "exec", namespace] if namespace else []
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [*into, sys.executable, str(HERE / script), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self.first = self._read()

    def ask(self, text: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._read()

    def say(self, text: str) -> None:
        """Ask, and read the answer later."""
        assert self._process.stdin is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        return dict(json.loads(self._read()))

    def close(self) -> None:
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            self._log.flush()
            raise RuntimeError(f"it ended: {Path(self._log.name).read_text(errors='replace')[-2000:]}")
        return text


@dataclass
class World:
    """A site and a hub with a line between them; ``netem`` says who spoils it."""

    folder: Path
    site: Child
    hub: Child
    line: Child
    names: tuple[str, str]
    netem: bool

    def spoil(self, **faults: Any) -> None:
        """Change the line; loss, delay and rate go to tc where the kernel can."""
        if self.netem and faults.keys() & {"loss", "delay_ms", "rate_kbit"}:
            for name in self.names:
                _netem(name, faults)
        self.line.ask(json.dumps(faults))


@contextmanager
def world(folder: Path) -> Iterator[World]:
    """Everything up and connected over a good line; all of it gone afterwards."""
    mark = secrets.token_hex(3)
    names = (f"lr-site-{mark}", f"lr-hub-{mark}")
    children: list[Child] = []
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        line = Child(None, "line.py", *names, log=folder / "line.log")
        children.append(line)
        netem = _netem(names[0], {}) and _netem(names[1], {})
        if netem:
            line.close()
            children[0] = line = Child(None, "line.py", *names, "netem", log=folder / "line.log")
        hub = Child(names[1], "hub_side.py", str(folder), log=folder / "hub.log")
        children.append(hub)
        device_keys(folder)
        site = Child(names[0], "site_side.py", str(folder), str(folder / "device"), log=folder / "site.log")
        children.append(site)
        yield World(folder, site, hub, line, names, netem)
    finally:
        for child in reversed(children):
            child.close()
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _netem(namespace: str, faults: dict[str, Any]) -> bool:
    """Put netem on the namespace's end of the line; False when the kernel has none."""
    words = ["delay", f"{faults.get('delay_ms', 0)}ms", "loss", f"{faults.get('loss', 0) * 100}%"]
    if faults.get("rate_kbit"):
        words += ["rate", f"{faults['rate_kbit']}kbit"]
    command = ["ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", "line", "root", "netem", *words]
    if shutil.which("tc") is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def device_keys(folder: Path) -> Path:
    """The device's key and certificate of the authority that the hub's side made."""
    authority, keys = Authority(folder), folder / "device"
    keys.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, DEVICE)])
    request = x509.CertificateSigningRequestBuilder(name).sign(key, hashes.SHA256())
    pem = request.public_bytes(Encoding.PEM).decode()
    (keys / "device.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (keys / "device.crt").write_text(authority.sign_device(pem, DEVICE, datetime.now(UTC)))
    (keys / "ca.crt").write_text(authority.ca_pem)
    return keys
