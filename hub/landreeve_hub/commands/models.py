"""``model``."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output, State, Token, Url

if TYPE_CHECKING:
    from landreeve.release.layout import Packed

RELEASE_COLUMNS = ("model", "version", "state", "digest", "created", "created_by", "approved_by", "metrics")


def group() -> typer.Typer:
    """``model push|list|show|pull|approve|withdraw``."""
    group = typer.Typer(help="Models and their releases.", no_args_is_help=True)

    @group.command("push")
    def push(
        folder: Path,
        *,
        repack: Annotated[
            bool, typer.Option("--repack", help="Make manifest and config anew from the files, which were edited.")
        ] = False,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Upload a release folder; it becomes a draft that someone else approves."""
        archive = _archive(folder, repack)
        note(f"Uploading {folder} ({len(archive) / 1e6:.1f} MB) …")
        emit(connect(url, token, state).upload("releases", archive), output)

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
        """One release: DIGEST (8 digits or more) or MODEL@VERSION."""
        emit(connect(url, token, state).get(f"releases/{release}"), output)

    @group.command("pull")
    def pull(
        release: str,
        folder: Path,
        *,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Write a release into a new folder, every digest checked."""
        if folder.exists() and any(folder.iterdir()):
            fail(Exit.CONFLICT, f"{folder}: exists and is not empty; name a new folder")
        digest = _unpack(connect(url, token, state).download(f"releases/{release}/archive"), folder)
        emit({"digest": digest, "folder": str(folder)}, output)

    _judge(group)
    return group


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


def _archive(folder: Path, repack: bool) -> bytes:
    from landreeve.release.layout import read_folder
    from landreeve.release.manifest import BadReleaseError

    from landreeve_hub.api.archive import write_archive

    if not folder.is_dir():
        fail(Exit.NOT_FOUND, f"{folder}: no such folder")
    try:
        return write_archive(_repacked(folder) if repack else read_folder(folder))
    except (BadReleaseError, OSError) as error:
        hint = "" if repack else " (after editing files on purpose, push with --repack)"
        fail(Exit.PROBLEMS, f"{folder}: {error}{hint}")


def _repacked(folder: Path) -> "Packed":
    """The release of the files as they are now, under the config they had."""
    from landreeve.release.layout import CONFIG_FILE, MANIFEST_FILE, pack, read_config
    from landreeve.release.manifest import SETTINGS_FILE

    config = read_config(folder)
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {CONFIG_FILE, MANIFEST_FILE, SETTINGS_FILE}
    }
    return pack(files, config)


def _unpack(archive: bytes, folder: Path) -> str:
    from landreeve.release.layout import write_folder
    from landreeve.release.manifest import BadReleaseError

    from landreeve_hub.api.archive import read_archive

    try:
        packed = read_archive(io.BytesIO(archive))
        if folder.exists():
            folder.rmdir()
        write_folder(packed, folder)
    except (BadReleaseError, OSError) as error:
        fail(Exit.PROBLEMS, f"{folder}: {error}")
    return packed.digest
