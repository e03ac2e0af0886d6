"""What of the hub is sealed at rest, and by which key."""

from landreeve.sealed.state import Parts
from landreeve.sealed.vault import Vault, opened

from landreeve_hub.config import HubFolder


def parts_of(folder: HubFolder) -> Parts:
    """What of the state folder can be sealed: database, blobs, and the cache of deltas."""
    return Parts(folder.root, folder.root / "hub.db", (folder.blobs, folder.deltas))


def opened_vault(folder: HubFolder, source: str) -> Vault | None:
    """The hub's vault, or None where nothing is sealed; `landreeve.sealed.errors.SealedError` says what is missing."""
    parts = parts_of(folder)
    return opened(parts.vault, source, folder.root, parts.database)
