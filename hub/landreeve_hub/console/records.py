"""The pages of what must hold for years: the audit log, and the fleet's signing keys."""

from collections.abc import Mapping
from typing import Any

from landreeve.ui import audit_page
from landreeve.ui.inside import Api

from landreeve_hub.console.answers import listed

OWN = frozenset({"root", "targets", "timestamp"})
"""Roles whose keys are the fleet's; those of every other role are people's."""


async def audit(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """How the log stands, its entries for those who may read them, and who witnesses it, refused logs first."""
    standing = await api.get("audit", "status")
    found = await audit_page.load(api, query)
    if found["checked"] is not None:
        standing = await api.get("audit", "status")
    sites = sorted(standing["sites"], key=lambda row: (not row["refused"], row["witnessed"], row.get("site") or ""))
    return {"standing": standing, "sites": sites, "refused": sum(bool(row["refused"]) for row in sites), **found}


async def keys(api: Api, names: Mapping[str, str], query: Mapping[str, str]) -> dict[str, Any]:
    """Roles, what awaits signatures, and people with keys of their own."""
    status = await api.get("keys")
    changes = listed(await api.get("keys", "changes"))
    # What awaits signatures has a card of its own; the advice about it would say the same twice.
    open_changes = tuple(f"{one['id']}:" for one in changes)
    machine = [role for role in status["roles"] if role["role"] in OWN]
    own = {signer["name"]: signer for role in machine for signer in role["signers"] if signer["name"]}
    return {
        "roles": status["roles"],
        "alarms": [role for role in status["roles"] if role["alarm"]],
        "advice": [line for line in status["advice"] if not line.startswith(open_changes)],
        "changes": changes,
        "people": listed(await api.get("keys", "approvers")),
        "replaceable": [own[name] for name in sorted(own)],
    }
