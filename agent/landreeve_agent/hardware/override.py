"""An inventory told by a file instead of the box, for support and tests (the setting ``hardware.override``).

The file is JSON with any of the inventory's own fields, as ``landreeve hw list -o json`` prints them; what it names
replaces what was read. With ``{"threads": 1}`` a large box plays a small one; with ``runtimes``, none is asked; and
with any override no device is proven, because the file has the last word (``proofs`` may be in it as well).
"""

from pathlib import Path
from typing import Any

import msgspec

from landreeve_agent.errors import OperatorError
from landreeve_agent.hardware.inventory import Inventory


class BadOverrideError(OperatorError):
    """The file cannot be used; the text says why."""


def read_override(path: str) -> dict[str, Any]:
    """The file's fields. Raises `BadOverrideError`."""
    try:
        found = msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise BadOverrideError(f"hardware.override: {path}: {error}; mend the file or unset the setting") from error
    unknown = sorted(found.keys() - {field.name for field in msgspec.structs.fields(Inventory)} - {"kind", "text"})
    if unknown:
        raise BadOverrideError(f"hardware.override: {path}: an inventory has no {', '.join(unknown)}")
    return found


def overridden(inventory: Inventory, fields: dict[str, Any], path: str) -> Inventory:
    """The inventory with the file's fields in place of its own. Raises `BadOverrideError`."""
    plain = msgspec.to_builtins(inventory)
    told = {name: _joined(plain.get(name), value) for name, value in fields.items()}
    try:
        return msgspec.convert({**plain, **told, "override": path}, Inventory)
    except msgspec.ValidationError as error:
        raise BadOverrideError(f"hardware.override: {path}: {error}") from error


def _joined(own: Any, told: Any) -> Any:
    """Of a table only what is named is replaced; a list is replaced whole."""
    return {**own, **told} if isinstance(own, dict) and isinstance(told, dict) else told
