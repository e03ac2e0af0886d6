"""Who we are at another registry: from flags, the environment, or the files that docker and podman keep.

Credential helpers are programs named by a file; they are not run.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from landreeve_hub.errors import OperatorError

USER_VARIABLE = "LANDREEVE_REGISTRY_USER"
PASSWORD_VARIABLE = "LANDREEVE_REGISTRY_PASSWORD"  # noqa: S105  a name
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Login:
    """``token`` is a bearer token; without one, user and password. Secrets are not shown when it is printed."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(
    registry: str, environ: Mapping[str, str], home: Path, user: str = "", password: str = ""
) -> Login | None:
    """The login for a registry (``host`` or ``host:port``): what is given, else the environment, else the files.

    `OperatorError` when a file cannot be read or names a credential helper for this registry.
    """
    user, password = user or environ.get(USER_VARIABLE, ""), password or environ.get(PASSWORD_VARIABLE, "")
    if user or password:
        return Login(user, password)
    for path in files(environ, home):
        if path.is_file() and (found := _of_file(path, registry)):
            return found
    return None


def files(environ: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """Where logins may be kept, the first that knows the registry counts."""
    named = [Path(environ["REGISTRY_AUTH_FILE"])] if environ.get("REGISTRY_AUTH_FILE") else []
    run = [Path(environ["XDG_RUNTIME_DIR"]) / "containers" / "auth.json"] if environ.get("XDG_RUNTIME_DIR") else []
    docker = Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    return (*named, *run, home / ".config" / "containers" / "auth.json", docker)


def _of_file(path: Path, registry: str) -> Login | None:
    document = _read(path)
    auths = document.get("auths")
    for key, entry in auths.items() if isinstance(auths, dict) else ():
        if _host(str(key)) == registry and isinstance(entry, dict) and entry:
            return _login(path, registry, entry)
    helpers = document.get("credHelpers")
    if isinstance(helpers, dict) and registry in helpers:
        raise OperatorError(
            f"{path}: keeps the login of {registry} with a credential helper, which is not run; "
            f"give it by {USER_VARIABLE} and {PASSWORD_VARIABLE}"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise OperatorError(f"{path}: larger than a file of logins can be")
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise OperatorError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OperatorError(f"{path}: {error}; mend it, or name another with REGISTRY_AUTH_FILE") from error
    return document


def _login(path: Path, registry: str, entry: dict[str, Any]) -> Login:
    if token := entry.get("registrytoken"):
        return Login(token=str(token))
    try:
        text = base64.b64decode(str(entry.get("auth", "")), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise OperatorError(f"{path}: the login of {registry} is no base64 of user:password") from error
    user, _, password = text.partition(":")
    return Login(str(entry.get("username") or user), str(entry.get("password") or password.rstrip("\0")))


def _host(key: str) -> str:
    """The registry of an entry: older files write it as a URL."""
    return key.partition("://")[2].partition("/")[0] if "://" in key else key.partition("/")[0]
