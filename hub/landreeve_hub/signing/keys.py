"""Setting up the fleet's signing, and replacing its keys: the drill an operator does from time to time."""

from datetime import datetime
from pathlib import Path

from landreeve_hub.signing import roots
from landreeve_hub.signing.targets import TargetsRepository


def init(state: Path, now: datetime) -> None:
    """Keys, roots and an empty approvers' list under the hub's state folder; what is there already stays.

    Three root keys of which two are needed, the approvers' key, the director's key.
    """
    roots.init(state, now)
    TargetsRepository(state).refresh(now)


def rotate(state: Path, name: str, now: datetime) -> None:
    """Replace the key of that name (`keyfolder.ALL_KEYS`) and sign the approvers' list anew.

    Needs two root keys on this machine, and the approvers' key when it signed the list. Afterwards every
    device's document must be signed again: `landreeve_hub.desired.publish.Publisher.refresh`.
    """
    roots.rotate(state, name, now)
    TargetsRepository(state).resign(now)
