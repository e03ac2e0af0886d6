"""Setting up the fleet's signing, and replacing its keys: the drill an operator does from time to time."""

from datetime import datetime
from pathlib import Path

from landreeve_hub.signing import roots
from landreeve_hub.signing.changes import Standing
from landreeve_hub.signing.copies import sweep
from landreeve_hub.signing.targets import TargetsRepository


def init(state: Path, now: datetime) -> None:
    """Keys, roots and an empty approvers' list under the hub's state folder; what is there already stays.

    Three root keys of which two are needed, the approvers' key, the director's key. What a crash cut short is ended.
    """
    sweep(state)
    roots.init(state, now)
    repository = TargetsRepository(state)
    repository.changes.recover(now)
    repository.refresh(now)


def rotate(state: Path, name: str, now: datetime) -> Standing:
    """Replace the key of that name (`keyfolder.ALL_KEYS`) and sign the approvers' list anew, as far as keys here can.

    Afterwards every device's document must be signed again: `landreeve_hub.desired.publish.Publisher.refresh`.
    """
    return TargetsRepository(state).changes.rotate(name, None, now, "hub")
