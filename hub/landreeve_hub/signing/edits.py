"""What is wanted of the signed lists and not in force yet. Pure: an edit is applied to a list in memory."""

from typing import Any

import msgspec
from tuf.api.metadata import DelegatedRole, Delegations, TargetFile, Targets

from landreeve_hub.signing.keyfolder import read_key


class AddTarget(msgspec.Struct, frozen=True, tag="add"):
    """List a target. ``target`` is its TUF form."""

    role: str
    name: str
    target: dict[str, Any]


class RemoveTarget(msgspec.Struct, frozen=True, tag="remove"):
    """List a target no longer."""

    role: str
    name: str


class SetRole(msgspec.Struct, frozen=True, tag="role"):
    """Let ``threshold`` of these keys list targets whose names match; no keys ends the role."""

    name: str
    paths: tuple[str, ...]
    threshold: int
    keys: tuple[dict[str, Any], ...]
    role: str = "targets"


class Renew(msgspec.Struct, frozen=True, tag="renew"):
    """Sign a list again, for a later expiry; done when the list has a version above ``version``."""

    role: str
    version: int


Edit = AddTarget | RemoveTarget | SetRole | Renew


def subject(edit: Edit) -> tuple[str, str]:
    """What an edit is about: a later edit about the same replaces an earlier one."""
    return edit.role, "" if isinstance(edit, Renew) else edit.name


def is_done(edit: Edit, listed: Targets) -> bool:
    """Whether the list already is as the edit wants it."""
    match edit:
        case AddTarget():
            known = listed.targets.get(edit.name)
            return known is not None and known.to_dict() == edit.target
        case RemoveTarget():
            return edit.name not in listed.targets
        case SetRole():
            return _role(listed, edit.name) == _wanted(edit)
        case Renew():
            return listed.version > edit.version


def apply(edit: Edit, listed: Targets) -> None:
    """Change the list as the edit wants it."""
    match edit:
        case AddTarget():
            listed.targets[edit.name] = TargetFile.from_dict(dict(edit.target), edit.name)
        case RemoveTarget():
            listed.targets.pop(edit.name, None)
        case SetRole():
            _set_role(listed, edit)
        case Renew():
            pass


def _set_role(listed: Targets, edit: SetRole) -> None:
    if listed.delegations is None:
        listed.delegations = Delegations({}, {})
    delegations = listed.delegations
    roles = delegations.roles if delegations.roles is not None else {}
    for keyid in list(roles[edit.name].keyids) if edit.name in roles else []:
        listed.revoke_key(keyid, edit.name)
    roles.pop(edit.name, None)
    if not edit.keys:
        return
    roles[edit.name] = DelegatedRole(edit.name, [], edit.threshold, terminating=False, paths=list(edit.paths))
    for document in edit.keys:
        listed.add_key(read_key(document), edit.name)


def _role(listed: Targets, name: str) -> tuple[object, ...] | None:
    roles = (listed.delegations.roles or {}) if listed.delegations else {}
    role = roles.get(name)
    return (tuple(role.paths or ()), role.threshold, tuple(sorted(role.keyids))) if role else None


def _wanted(edit: SetRole) -> tuple[object, ...] | None:
    return (edit.paths, edit.threshold, tuple(sorted(one["keyid"] for one in edit.keys))) if edit.keys else None
