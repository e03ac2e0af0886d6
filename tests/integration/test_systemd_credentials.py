"""A key at rest that systemd hands over: encrypted by systemd-creds, opened by a systemd of the test's own, used by the
agent that the shipped unit starts."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from landreeve.sealed.sqlite import is_sealed

from tests.integration.test_agent_process import Site, with_release

pytest.importorskip("sqlcipher3")
ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "systemd" / "landreeve-agent.service"
NAME = "landreeve-key"
SYSTEMD = Path("/lib/systemd/systemd")
UP_S = 90.0

# Everything it mounts and starts is gone with the first process of the namespaces. A Python or a checkout below a home
# that is closed to others is shown to the unit's user there.
BOOT = """
set -eu
mount --make-rprivate / && mount --make-rshared /
root=$1; shift
for folder in /run /dev/shm; do mount -t tmpfs tmpfs $folder; done
count=0
for path in "$@"; do count=$((count + 1)); mkdir -p /run/seen/$count; mount --bind "$path" /run/seen/$count; done
for path in "$@"; do mount -t tmpfs -o mode=755 tmpfs "/$(echo "$path" | cut -d/ -f2)"; done
count=0
for path in "$@"; do count=$((count + 1)); mkdir -p "$path"; mount --bind /run/seen/$count "$path"; done
mount --bind "$root" /srv
mount --bind /srv/lib /var/lib
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd/system && cp /srv/landreeve-agent.service /run/systemd/system/
exec env -i container=test PATH="$PATH" /lib/systemd/systemd --system --unit=landreeve-agent.service --show-status=no
"""


def closed(path: Path) -> bool:
    """Whether a folder above keeps others out."""
    return any(not parent.stat().st_mode & 0o001 for parent in path.parents)


def own_groups() -> set[Path]:
    """The control groups (version 2) below this process's own."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    places = [fields[1] for fields in mounts if fields[2] == "cgroup2"]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    base = Path(places[0] + own[0]) if places and own else None
    return {Path(folder) for folder, _, _ in os.walk(base)} if base else set()


@pytest.fixture
def sealed_key(tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """A key, the credential that systemd-creds made of it, and the environment with this test's own host secret."""
    if shutil.which("systemd-creds") is None:
        pytest.skip("no systemd-creds on this machine (Debian: apt-get install systemd)")
    environment = {**os.environ, "SYSTEMD_CREDENTIAL_SECRET": str(tmp_path / "host-secret")}
    key, credential = tmp_path / "key", tmp_path / f"{NAME}.cred"
    key.write_bytes(os.urandom(32))
    command = ["systemd-creds", "encrypt", "--with-key=host", f"--name={NAME}", str(key), str(credential)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"systemd-creds makes no host key here: {done.stderr.strip()}")
    return key, credential, environment


def test_a_credential_opens_the_site_and_without_it_nothing_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed_key: tuple[Path, Path, dict[str, str]]
) -> None:
    key, credential, environment = sealed_key
    assert key.read_bytes() not in credential.read_bytes()
    site = Site(tmp_path / "state")
    site.init()
    without = site.cli("store", "encrypt", "--key", f"credential:{NAME}")
    assert without.returncode == 5
    assert f"LoadCredentialEncrypted={NAME}" in without.stderr
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    subprocess.run(
        ["systemd-creds", "decrypt", f"--name={NAME}", str(credential), str(folder / NAME)], env=environment, check=True
    )
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    with_release(site.state)
    done = site.cli("store", "encrypt", "--key", f"credential:{NAME}")
    assert done.returncode == 0, done.stderr
    try:
        site.start()
        assert 0.0 < site.infer("a")["outputs"][0]["data"][0] < 1.0
        assert site.end() == 0
    finally:
        if site.process is not None and site.process.poll() is None:
            site.kill()
    assert is_sealed(site.state / "agent.db")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    refused = site.cli("run")
    assert refused.returncode != 0
    assert f"LoadCredentialEncrypted={NAME}" in refused.stderr


class Booted:
    """systemd as the first process of namespaces of its own, with the shipped unit and this test's credential."""

    def __init__(self, root: Path, credential: Path, secret: Path) -> None:
        self.root = root
        self.groups = own_groups()
        self.state = root / "lib" / "private" / "landreeve"
        (root / "lib" / "systemd").mkdir(parents=True)
        shutil.copy(secret, root / "lib" / "systemd" / "credential.secret")
        shutil.copy(credential, root / "lib" / credential.name)
        agent = f"{sys.executable} -m landreeve_agent --state ${{STATE_DIRECTORY}}"
        ports = "--set console.port=0 --set serving.port=0"
        unit = UNIT.read_text()
        assert f"#LoadCredentialEncrypted={NAME}:/etc/landreeve/{NAME}.cred" in unit
        unit = unit.replace(
            f"#LoadCredentialEncrypted={NAME}:/etc/landreeve/", f"LoadCredentialEncrypted={NAME}:/var/lib/"
        )
        unit = unit.replace("ProtectHome=yes", "ProtectHome=no")  # this checkout may lie below one
        first = (
            f"ExecStartPre={agent} init --site Unit {ports}\n"
            f"ExecStartPre={agent} store encrypt --key credential:{NAME}\n"
            f"WorkingDirectory={ROOT}\nStandardOutput=append:/var/lib/out\nStandardError=append:/var/lib/out\n"
        )
        unit = unit.replace(
            "ExecStart=/opt/landreeve/bin/landreeve --state ${STATE_DIRECTORY}", f"{first}ExecStart={agent}"
        )
        (root / "landreeve-agent.service").write_text(f"{unit}\n[Unit]\nDefaultDependencies=no\n")
        shown = [path for path in (ROOT, Path(sys.base_prefix)) if closed(path)]
        spaces = ["--pid", "--fork", "--mount", "--mount-proc", "--uts", "--ipc", "--cgroup", "--kill-child"]
        command = ["unshare", *spaces, "sh", "-c", BOOT, "boot", str(root), *map(str, shown)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def up(self) -> dict[str, Any]:
        """The status of the agent, from its command line's own words."""
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                said = self.process.communicate()[0]
                pytest.skip(f"systemd does not boot in namespaces here: {said.strip()[-200:]}")
            if (self.state / "run" / "ports.json").exists():
                site = Site(self.state)
                try:
                    return site.status()
                except (OSError, ValueError):
                    pass
            time.sleep(0.2)
        out = self.root / "lib" / "out"
        pytest.fail(f"no agent: {out.read_text()[-3000:] if out.exists() else 'the unit wrote nothing'}")

    def end(self) -> None:
        """End all of it, and the control groups it made below this test's own."""
        self.process.kill()
        self.process.communicate()
        deadline = time.monotonic() + UP_S
        while (left := own_groups() - self.groups) and time.monotonic() < deadline:
            for folder in sorted(left, reverse=True):
                with contextlib.suppress(OSError):  # what was killed may still be leaving it
                    folder.rmdir()
            time.sleep(0.1)


@pytest.fixture
def booted(tmp_path: Path, sealed_key: tuple[Path, Path, dict[str, str]]) -> Iterator[Booted]:
    if os.geteuid() != 0 or not SYSTEMD.exists() or shutil.which("unshare") is None:
        pytest.skip("namespaces, and a systemd to start in them, need root")
    made = Booted(tmp_path, sealed_key[1], Path(sealed_key[2]["SYSTEMD_CREDENTIAL_SECRET"]))
    yield made
    made.end()


@pytest.mark.slow
def test_the_shipped_unit_opens_a_sealed_site_with_the_credential_of_its_machine(booted: Booted) -> None:
    status = booted.up()
    assert status["site"] == "Unit"
    assert is_sealed(booted.state / "agent.db")
    settings = (booted.state / "agent.toml").read_text()
    assert f'key = "credential:{NAME}"' in settings
    vault = json.loads((booted.state / "keys" / "vault.json").read_bytes())
    assert vault["version"] == 1
    assert booted.state.stat().st_uid != 0  # as the unit says: a dynamic user


@pytest.mark.slow
def test_who_calls_while_the_units_agent_is_killed_and_comes_again_waits_for_its_answer(booted: Booted) -> None:
    booted.up()
    ports = booted.state / "run" / "ports.json"
    port = json.loads(ports.read_text())["console"]
    for _ in range(2):
        (agent,) = agents(booted.state)
        agent.kill()
        waits = []
        while len(waits) < 20 or agents(booted.state) in ([], [agent]):
            began = time.monotonic()
            with socket.create_connection(("127.0.0.1", port), 30) as caller:  # never refused
                caller.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):  # what the killed one had begun to read
                    assert caller.recv(12).startswith((b"HTTP/1.1 ", b""))
                    waits.append(time.monotonic() - began)
            time.sleep(0.05)
        assert max(waits) < UP_S
    booted.up()
    assert json.loads(ports.read_text())["console"] == port


def agents(state: Path) -> list[psutil.Process]:
    """The supervisors that keep this state folder, by their command line."""
    mine = [f"/var/lib/{state.name}", str(Path("/var/lib/private") / state.name)]
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "landreeve_agent" in words and "run" in words and any(name in words for name in mine):
            found.append(process)
    return found
