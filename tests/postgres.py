"""A PostgreSQL server of a test run's own: on a Unix socket in a folder of its own, gone at the end.

Debian's package `postgresql` brings it; `skip_reason` says what is missing. PostgreSQL refuses to run as root, so root
starts it as the user ``postgres`` that the package makes.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

USER = "postgres"
STARTS_WITHIN_S = 30.0
# A test's database need not survive a power cut; everything else is as PostgreSQL comes.
OPTIONS = ("listen_addresses=", "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


def programs() -> Path | None:
    """The folder of initdb and postgres, the newest version's; None when there is none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent  # a link to it may stand alone
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), key=lambda folder: float(folder.parent.name), default=None)


def skip_reason() -> str:
    """Why no server can be started here; empty when one can."""
    if programs() is None:
        return "no PostgreSQL here (Debian: apt-get install postgresql)"
    if find_spec("psycopg") is None:
        return "no driver for PostgreSQL here (pip install 'landreeve[postgres]')"
    if os.geteuid() == 0 and not any(user.pw_name == USER for user in pwd.getpwall()):
        return f"PostgreSQL does not run as root, and there is no user {USER} to start it as"
    return ""


@dataclass
class Server:
    """Databases by name, made when first asked for."""

    folder: Path
    made: set[str] = field(default_factory=set)

    def url(self, name: str) -> str:
        """The SQLAlchemy URL of a database."""
        if name not in self.made:
            self._run(f'CREATE DATABASE "{name}"')
            self.made.add(name)
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}"

    def disconnect(self) -> None:
        """End every session, as a restart of the server does."""
        self._run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def _run(self, statement: str) -> None:
        from sqlalchemy import create_engine, text

        engine = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@contextmanager
def server() -> Iterator[Server]:
    """A running server; what it kept is removed with it."""
    bin_folder = programs()
    if bin_folder is None:
        raise FileNotFoundError(skip_reason())
    folder = Path(tempfile.mkdtemp(prefix="lr-pg-"))  # a socket's path may have 107 bytes: not pytest's folder
    who: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": ()} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(folder, USER, USER)
    data = folder / "data"
    try:
        initdb = [bin_folder / "initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync", "-N"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **who)
        options = [part for option in (*OPTIONS, f"unix_socket_directories={folder}") for part in ("-c", option)]
        with (folder / "log").open("wb") as log:
            child = subprocess.Popen(
                [bin_folder / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder, **who
            )
        try:
            _await_ready(bin_folder, folder, child)
            yield Server(folder)
        finally:
            child.send_signal(signal.SIGQUIT)
            child.wait(STARTS_WITHIN_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await_ready(bin_folder: Path, folder: Path, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    asks = [bin_folder / "pg_isready", "-q", "-h", folder, "-U", USER]
    while subprocess.run(asks, check=False).returncode:
        if child.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"PostgreSQL did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
