"""An incident for each role that people should sign anew; closed by itself once they have."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from landreeve_hub.incidents.incidents import Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.signing.desk import KeyDesk
from landreeve_hub.store.database import Store


async def watch(desk: KeyDesk, store: Store, incidents: Incidents, now: datetime) -> None:
    """Open and close the incidents as the roles stand: due every hour."""
    status = await asyncio.to_thread(desk.status)

    def judge(connection: Connection) -> None:
        for role in status["roles"]:
            raised = _raised(role)
            if role["alarm"]:
                incidents.open_in(connection, now, raised)
            else:
                incidents.close_key_in(connection, now, raised.key, "hub", "It was signed anew.")

    await store.write(judge)


def _raised(role: Mapping[str, Any]) -> Raise:
    name, days = f"{role['repository']} {role['role']}", role["days_left"]
    when = f"expires in {days:.0f} days" if days > 0 else f"expired {-days:.0f} days ago"
    sentence = (
        f"The signatures of {name} are past half of their life: it {when} ({role['expires'][:10]}). Once it has, no "
        "box installs anything new; they serve on. Sign it anew: "
        f"landreeve-hub keys renew {role['role']} (see keys status)."
    )
    severity = "warning" if days > 0 else "error"
    subject = {"repository": role["repository"], "role": role["role"]}
    return Raise(
        f"keys:{role['repository']}:{role['role']}", "keys_expiring", severity, "keys_expiring", sentence, subject
    )
