"""``store status|encrypt|decrypt|rekey|recover`` of both programs: the same steps on another state folder."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from landreeve.cli import Exit, Format, emit, fail, note
from landreeve.sealed.errors import SealedError

if TYPE_CHECKING:
    from landreeve.sealed.vault import Vault


@dataclass(frozen=True)
class Place:
    """A state folder as the commands see it: its root, database and blob stores, where its key is said to be, how that
    is changed in its settings, and the lock that keeps the program from running meanwhile. ``read_out`` reads what only
    the vault opens and a conversion leaves as it is, before the vault goes; ``models`` and ``passing`` are those of
    `landreeve.sealed.state.Parts`."""

    root: Path
    database: Path
    blobs: tuple[Path, ...]
    source: str
    set_source: Callable[[str], None]
    only_one: Callable[[], AbstractContextManager[object]]
    read_out: Callable[["Vault"], None] = lambda _: None
    models: Path | None = None
    passing: tuple[Path, ...] = ()

    @property
    def parts(self) -> Any:
        from landreeve.sealed.state import Parts

        return Parts(self.root, self.database, self.blobs, self.models, self.passing)


def status(place: Place, output: Format) -> None:
    """What is sealed and what is not (exit 3 when a sealed state still holds plain parts)."""
    from landreeve.sealed import state
    from landreeve.sealed.vault import Vault

    if not place.parts.vault.exists():
        emit({"sealed": False, "key": place.source or "none"}, output)
        return
    with _told():
        tally = state.status(place.parts, Vault.open(place.parts.vault, place.source, place.root))
    emit({"sealed": True, "key": place.source, **_row(tally)}, output)
    if not tally.whole:
        note("not everything is sealed with the newest key: store encrypt goes on where it was")
        raise SystemExit(int(Exit.PROBLEMS))


def encrypt(place: Place, source: str, output: Format) -> None:
    """Seal the state folder; what was begun and cut short goes on. The recovery key is printed once."""
    from landreeve.sealed import sqlite, state
    from landreeve.sealed.vault import Vault

    source = source or place.source
    if not source:
        fail(Exit.USAGE, "say where the key is: --key file:/etc/landreeve/key (made by head -c 32 /dev/urandom, 0600)")
    with _told(), place.only_one():
        sqlite.module()  # without SQLCipher nothing is begun
        if place.parts.vault.exists():
            vault = Vault.open(place.parts.vault, source, place.root)
        else:
            vault, _ = Vault.create(place.parts.vault, source, place.root, _tell_recovery)
        place.set_source(source)
        emit({"sealed": True, "key": source, **_row(state.seal(place.parts, vault))}, output)


def decrypt(place: Place, output: Format) -> None:
    """Everything in plain text again."""
    from landreeve.sealed import state
    from landreeve.sealed.vault import Vault

    with _told(), place.only_one():
        vault = Vault.open(place.parts.vault, place.source, place.root)
        place.read_out(vault)
        tally = state.unseal(place.parts, vault)
        place.set_source("")
        place.parts.vault.unlink()
    emit({"sealed": False, **_row(tally)}, output)


def rekey(place: Place, source: str, output: Format) -> None:
    """Fresh keys for everything, sealed anew; with another source also another operator's key."""
    from landreeve.sealed import state
    from landreeve.sealed.vault import PURPOSES, Vault

    with _told(), place.only_one():
        vault = Vault.open(place.parts.vault, place.source, place.root)
        if source:
            vault.rewrap(source, place.root)
            place.set_source(source)
        for purpose in PURPOSES:
            vault.add_key(purpose)
        tally = state.seal(place.parts, vault)
        # The spool's older key stays: lines sealed with it may still wait to be read.
        for purpose in ("store", "blobs"):
            vault.drop_keys(purpose)
    emit({"sealed": True, "key": source or place.source, **_row(tally)}, output)


def recover(place: Place, words: str, source: str, output: Format) -> None:
    """Open with the recovery key, and use the key of ``source`` from now on."""
    from landreeve.sealed.vault import Vault

    with _told(), place.only_one():
        Vault.recover(place.parts.vault, words, source, place.root)
        place.set_source(source)
    emit({"sealed": True, "key": source}, output)


def _tell_recovery(recovery: str) -> None:
    note("Recovery key, shown this once. Write it down and keep it away from this machine: with it anybody can read")
    note("what is sealed here, and without it a lost key is the end of the data.")
    typer.echo(f"  {recovery}", err=True)


def _row(tally: Any) -> dict[str, Any]:
    return {
        "database": tally.database,
        "blobs_sealed": tally.current,
        "blobs_older_key": tally.older,
        "blobs_plain": tally.plain,
        "files_sealed": tally.files,
        "files_older_key": tally.files_older,
        "files_plain": tally.files_plain,
        "converted": tally.converted,
    }


class _told(AbstractContextManager[None]):  # noqa: N801 - reads as a verb where it is used
    """Expected trouble ends the command with its sentence."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, SealedError):
            self._stop(Exit.AUTH, error)
        from landreeve.sealed.sqlite import ConversionError

        if isinstance(error, ConversionError | OSError):
            self._stop(Exit.FAILURE, error)

    def _stop(self, code: Exit, error: BaseException) -> NoReturn:
        fail(code, str(error))
