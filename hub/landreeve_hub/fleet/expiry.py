"""Certificates that end soon: a box renews at a third of its certificate's life, so one that has not is in trouble."""

from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from landreeve_hub.incidents.incidents import CLOSED, Incidents
from landreeve_hub.incidents.rules import Raise
from landreeve_hub.store.moment import parse_rfc3339
from landreeve_hub.store.tables import certificates, devices, incidents

# Renewal is due with 33 % to 27 % left. Below these shares it has been failing for days, or the box was away.
WARN, ALARM = 0.2, 0.08


def watch_in(connection: Connection, now: datetime, recover_days: float) -> int:
    """Open an incident for each device whose certificate ends soon or has ended, and close those that are renewed;
    how many are open. What counts is the certificate the device itself last spoke of."""
    count = 0
    for row in connection.execute(select(devices).where(~devices.c.revoked)).all():
        serial = row.doc.get("certificate_serial") or row.certificate_serial
        used = connection.execute(select(certificates).where(certificates.c.serial == serial)).one_or_none()
        if used is None or not used.expires or not used.issued:
            continue
        raised = judge(row.id, row.site, (parse_rfc3339(used.issued), parse_rfc3339(used.expires)), now, recover_days)
        if raised is None:
            _close(connection, row.id, now)
        else:
            count += 1
            Incidents().open_in(connection, now, raised)
    return count


def judge(device: str, site: str, life: tuple[datetime, datetime], now: datetime, recover_days: float) -> Raise | None:
    """The incident a certificate amounts to; None while it is good for long enough."""
    issued, expires = life
    left = (expires - now) / (expires - issued)
    if left > WARN:
        return None
    days = (expires - now) / timedelta(days=1)
    if days < 0:
        text = (
            f"The certificate of {site} ended {-days:.0f} days ago. When the box comes back within {recover_days:g} "
            "days of that it renews by itself; later it joins again with a token that replaces it."
        )
    else:
        text = (
            f"The certificate of {site} ends in {days:.0f} days and was not renewed: the box has not reached this hub "
            "over HTTPS, or was refused. On the box: landreeve doctor."
        )
    severity = "error" if left < ALARM else "warning"
    kind = "certificate_expired" if days < 0 else "certificate_expiring"
    return Raise(f"certificate:{device}", kind, severity, "not_renewed", text, {"device": device, "site": site})


def _close(connection: Connection, device: str, now: datetime) -> None:
    query = select(incidents.c.id).where(incidents.c.key == f"certificate:{device}", incidents.c.state != CLOSED)
    found = connection.execute(query).scalar_one_or_none()
    if found is not None:
        Incidents().close_in(connection, now, found, "hub", "The certificate was renewed.")
