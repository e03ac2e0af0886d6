"""``model``."""

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

if TYPE_CHECKING:
    from landreeve_hub.exchange.places import Access

RegistryUser = Annotated[
    str, typer.Option("--registry-user", envvar="LANDREEVE_REGISTRY_USER", help="User at the other registry.")
]
RegistryPassword = Annotated[
    Path | None,
    typer.Option(
        "--registry-password-file", help="File with the password there; or the variable LANDREEVE_REGISTRY_PASSWORD."
    ),
]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Allow the other registry to be spoken to without TLS.")]
RELEASE_COLUMNS = ("model", "version", "state", "digest", "created", "created_by", "approved_by", "metrics")


def group() -> typer.Typer:
    """``model push|list|show|pull|card|bom|approve|withdraw``."""
    group = typer.Typer(help="Models and their releases.", no_args_is_help=True)

    _push(group)

    @group.command("list")
    def listed(
        *, model: str = "", url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Every release, newest first."""
        emit(connect(url, token, state).get("releases", model=model), output, RELEASE_COLUMNS)

    @group.command("show")
    def show(
        release: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """One release: DIGEST (8 digits or more), MODEL:VERSION, or MODEL for the newest approved one.

        ``pull`` is the reference any OCI client pulls it by, with a token of the hub as password.
        """
        hub = connect(url, token, state)
        found = hub.get(f"releases/{release}")
        emit(references(hub.url, found) | found, output)

    _pull(group)
    _papers(group)
    _judge(group)
    return group


def _papers(group: typer.Typer) -> None:
    @group.command("card")
    def card(release: str, *, url: Url = "", token: Token = "", state: State = None) -> None:
        """Print a release's card (Markdown)."""
        sys.stdout.write(connect(url, token, state).download(f"releases/{release}/card").decode())

    @group.command("bom")
    def bom(release: str, *, url: Url = "", token: Token = "", state: State = None) -> None:
        """Print an approved release's bill of materials (CycloneDX 1.7, JSON)."""
        sys.stdout.write(connect(url, token, state).download(f"releases/{release}/bom").decode() + "\n")


def _push(group: typer.Typer) -> None:
    @group.command("push")
    def push(
        source: Annotated[str, typer.Argument(metavar="DIR|FILE|oci://…", help="A folder, a tar, or a reference.")],
        *,
        repack: Annotated[
            bool, typer.Option("--repack", help="Make manifest and config anew from the files, which were edited.")
        ] = False,
        tag: Annotated[str, typer.Option(help="Which manifest of a tar that holds several.")] = "",
        registry_user: RegistryUser = "",
        registry_password_file: RegistryPassword = None,
        plain_http: PlainHttp = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Bring a release to the hub; it becomes a draft that someone else approves.

        DIR is a release folder or a model folder, FILE a tar of an OCI image layout or of a release folder, and
        oci://host/name:tag a release in another registry, pulled and checked here.
        """
        access = _access(registry_user, registry_password_file, plain_http)
        hub = connect(url, token, state)
        archive = _packed_archive(source, access, repack, tag)
        note(f"Uploading {source} ({len(archive) / 1e6:.1f} MB) …")
        emit(hub.upload("releases", archive), output)


def _pull(group: typer.Typer) -> None:
    @group.command("pull")
    def pull(
        release: str,
        destination: Annotated[
            str, typer.Argument(metavar="DIR|FILE.tar|oci://…", help="A new folder, a tar, or a reference.")
        ],
        *,
        registry_user: RegistryUser = "",
        registry_password_file: RegistryPassword = None,
        plain_http: PlainHttp = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Take a release out of the hub, every digest checked: DIGEST, MODEL:VERSION, or MODEL (newest approved).

        Into a new folder, into a tar that is an OCI image layout, or into another registry.
        """
        folder = Path(destination)
        if not destination.startswith("oci://") and folder.is_dir() and any(folder.iterdir()):
            fail(Exit.CONFLICT, f"{folder}: exists and is not empty; name a new folder")
        access = _access(registry_user, registry_password_file, plain_http)
        hub = connect(url, token, state)
        found = hub.get(f"releases/{release}")
        archive = hub.download(f"releases/{found['digest']}/archive")
        emit(_placed(archive, destination, found["version"], access), output)


def _judge(group: typer.Typer) -> None:
    @group.command("approve")
    def approve(
        release: str,
        *,
        emergency: Annotated[str, typer.Option(help="Admins only: the reason to approve one's own release.")] = "",
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Sign a release so that it may be rolled out."""
        made = connect(url, token, state).post(f"releases/{release}/approve", {"emergency": emergency})
        emit({k: made[k] for k in ("model", "version", "state", "digest", "approved_by")}, output)

    @group.command("withdraw")
    def withdraw(
        release: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Let no new rollout take this release."""
        made = connect(url, token, state).post(f"releases/{release}/withdraw")
        emit({k: made[k] for k in ("model", "version", "state", "digest")}, output)


def references(url: str, release: Mapping[str, Any]) -> dict[str, str]:
    """What an OCI client pulls a release by: its tag, and its digest, which never means another."""
    repository = f"{urlsplit(url).netloc}/{release['repository']}"
    return {
        "pull": f"{repository}:{release['version']}",
        "pull_by_digest": f"{repository}@sha256:{release['digest']}",
    }


def _access(user: str, password_file: Path | None, plain_http: bool) -> "Access":
    from landreeve_hub.exchange.places import Access

    try:
        password = password_file.read_text(encoding="utf-8").strip() if password_file else ""
    except (OSError, UnicodeDecodeError) as error:
        fail(Exit.USAGE, f"{password_file}: cannot be read: {error}")
    return Access(user, password, plain_http)


def _packed_archive(source: str, access: "Access", repack: bool, tag: str) -> bytes:
    from landreeve_hub.exchange.archive import write_archive
    from landreeve_hub.exchange.places import read_place

    if not source.startswith("oci://") and not Path(source).exists():
        fail(Exit.NOT_FOUND, f"{source}: no such folder or file")
    hint = "" if repack or not Path(source).is_dir() else " (after editing files on purpose, push with --repack)"
    with _told(source, hint):
        return write_archive(read_place(source, access, repack=repack, tag=tag))


def _placed(archive: bytes, destination: str, version: str, access: "Access") -> dict[str, str]:
    from landreeve_hub.exchange.archive import read_archive
    from landreeve_hub.exchange.places import write_place

    with _told(destination):
        packed = read_archive(io.BytesIO(archive))
        place = write_place(packed, destination, version, access)
    return {"digest": packed.digest, "place": place}


@contextmanager
def _told(place: str, hint: str = "") -> Iterator[None]:
    """Ends the command with the reason and the exit code that says what kind it is."""
    from landreeve.release.manifest import BadReleaseError

    from landreeve_hub.errors import (
        OperatorError,
        RegistryAuthError,
        RegistryAwayError,
        RegistryError,
        RegistryMissingError,
    )

    try:
        yield
    except (BadReleaseError, OSError) as error:
        fail(Exit.PROBLEMS, f"{place}: {error}{hint}")
    except RegistryAuthError as error:
        fail(Exit.AUTH, str(error))
    except RegistryMissingError as error:
        fail(Exit.NOT_FOUND, str(error))
    except RegistryAwayError as error:
        fail(Exit.UNREACHABLE, str(error))
    except (OperatorError, RegistryError) as error:
        fail(Exit.FAILURE, str(error))
