"""What of a site is sealed at rest, and by which key. A plain site imports nothing of it: cryptography takes memory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from landreeve.blobs.codec import Codec

from landreeve_agent.config import AgentSettings, StateFolder
from landreeve_agent.store.database import StoreError

if TYPE_CHECKING:
    from landreeve.sealed.vault import Vault


def opened_vault(state: StateFolder, settings: AgentSettings) -> "Vault | None":
    """The site's vault, or None where nothing is sealed; `StoreError` says which key is missing or wrong."""
    if not settings.at_rest.key and not state.vault.exists():
        return None
    from landreeve.sealed.errors import SealedError
    from landreeve.sealed.vault import opened

    try:
        return opened(state.vault, settings.at_rest.key, state.root, state.database)
    except SealedError as error:
        raise StoreError(str(error)) from error


def store_keys(vault: "Vault | None") -> list[bytes]:
    """Keys of the database, oldest first."""
    return list(vault.keys("store").values()) if vault else []


def blob_codec(vault: "Vault | None") -> Codec | None:
    """How blobs lie in their files."""
    if vault is None:
        return None
    from landreeve.sealed.blobs import SealedCodec

    return SealedCodec(vault.keys("blobs"))


def spool_keys(vault: "Vault | None") -> Mapping[str, bytes]:
    """Keys of the capture spool, for the worker."""
    return vault.keys("spool") if vault else {}


def spool_unseal(vault: "Vault | None") -> Callable[[str, bytes], bytes | None] | None:
    """What opens the lines the worker sealed."""
    if vault is None:
        return None
    from landreeve.sealed.lines import LineSealer

    return LineSealer(vault.keys("spool")).unseal


def training_folder(state: StateFolder, settings: AgentSettings) -> Path:
    """Where trainings keep their rows and checkpoints: on the scratch folder, if there is one."""
    if not settings.at_rest.scratch:
        return state.training
    folder = Path(settings.at_rest.scratch) / "training"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
