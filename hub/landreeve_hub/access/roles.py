"""Who may do what: one static matrix. What is not in it is forbidden."""

from enum import StrEnum


class Role(StrEnum):
    """What a person is to the fleet."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ML_ENGINEER = "ml-engineer"
    APPROVER = "approver"
    SECURITY = "security"
    DPO = "dpo"
    AUDITOR = "auditor"
    ADMIN = "admin"


class Permission(StrEnum):
    """What a route of the API asks for; the names are also the scopes of tokens."""

    VIEW = "view"
    TRAIN = "train"
    PROPOSE = "propose"
    APPROVE = "approve"
    STEER = "steer"
    ROLL_BACK = "roll_back"
    ENROL = "enrol"
    DEVICES = "devices"
    INCIDENTS = "incidents"
    USERS = "users"
    TOKENS = "tokens"
    AUDIT = "audit"
    ERASE = "erase"
    EMERGENCY = "emergency"
    KEYS = "keys"


_ALL = frozenset(Permission)
_P = Permission
_BASE = frozenset({_P.VIEW, _P.TOKENS})

MATRIX: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: _BASE,
    Role.OPERATOR: _BASE | {_P.STEER, _P.ROLL_BACK, _P.ENROL, _P.INCIDENTS},
    Role.ML_ENGINEER: _BASE | {_P.TRAIN, _P.PROPOSE, _P.STEER, _P.INCIDENTS},
    Role.APPROVER: _BASE | {_P.APPROVE, _P.ROLL_BACK, _P.INCIDENTS},
    Role.SECURITY: _BASE | {_P.ROLL_BACK, _P.ENROL, _P.DEVICES, _P.INCIDENTS, _P.AUDIT, _P.ERASE, _P.KEYS},
    Role.DPO: _BASE | {_P.AUDIT, _P.ERASE},
    Role.AUDITOR: _BASE | {_P.AUDIT},
    Role.ADMIN: _ALL,
}


def allowed(role: Role, permission: Permission, scopes: frozenset[str] | None = None) -> bool:
    """Whether the role holds the permission; a token's ``scopes`` can only narrow it.

    >>> allowed(Role.VIEWER, Permission.APPROVE)
    False
    """
    return permission in MATRIX[role] and (scopes is None or "*" in scopes or permission.value in scopes)
