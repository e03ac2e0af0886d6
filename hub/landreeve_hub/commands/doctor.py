"""``landreeve-hub doctor``: what is checked at a hub, each with the fact and how to mend it.

Works on the state folder, whether or not the hub runs; what only a running hub knows is asked of it.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from landreeve.cli import Check, Format, Level, note, report

from landreeve_hub.commands.client import connect
from landreeve_hub.commands.options import Output
from landreeve_hub.commands.server import StateFolder

LEAST_FREE_MB = 1000
CRL_AGE = timedelta(days=2)
CA_YEARS = timedelta(days=365)
SERVER_LEFT = timedelta(days=14)
BACKUP_AGE = timedelta(days=7)
CLOCK = timedelta(minutes=5)


def install(root: typer.Typer) -> None:
    """Put the command on the root."""

    @root.command()
    def doctor(
        *,
        state: StateFolder = Path("hub-state"),
        fix: Annotated[bool, typer.Option("--fix", help="Put right what is safe to: permissions.")] = False,
        broker: Annotated[bool, typer.Option("--broker", help="Also try the broker as a bad device would.")] = False,
        output: Output = Format.TABLE,
    ) -> None:
        """Check this hub part by part; each finding with its fix. Exit code 3 when a check fails."""
        if fix:
            for sentence in mend(state):
                note(f"mended: {sentence}")
        report(examine(state.absolute(), datetime.now(UTC), broker=broker), output)


def examine(state: Path, now: datetime, *, broker: bool = False) -> list[Check]:
    """Every check of the hub on that folder."""
    if not state.is_dir():
        return [Check("state folder", "fail", f"{state} does not exist", "landreeve-hub init")]
    parts: tuple[Callable[[], Iterator[Check]], ...] = (
        lambda: _folder(state),
        lambda: _settings(state),
        lambda: _disk(state),
        lambda: _authority(state, now),
        lambda: _list(state, now),
        lambda: _signing(state, now),
        lambda: _backup(state, now),
        lambda: _running(state, now, broker=broker),
    )
    return [check for part in parts for check in _safely(part)]


def mend(state: Path) -> list[str]:
    """Close what others could read; each in a sentence."""
    done = []
    for path in (state, *(one for name in ("ca", "keys") for one in sorted((state / name).rglob("*.key")))):
        mode = 0o700 if path.is_dir() else 0o600
        if path.exists() and path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)
            done.append(f"{path}: only its owner may use it now")
    return done


def _safely(part: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A check that cannot be made is a finding too, and keeps none of the others away."""
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001  whatever it is, the person who asked must see it
        yield Check("doctor", "fail", f"{type(error).__name__}: {error}", "restore what it names from a backup")


def _folder(state: Path) -> Iterator[Check]:
    mode = stat.S_IMODE(state.stat().st_mode)
    loose = [path for path in state.rglob("*.key") if path.stat().st_mode & 0o077]
    if not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        yield Check("state folder", "fail", f"{state} is not writable", "use the account the hub runs as")
    elif mode & 0o077 or loose:
        which = ", ".join(path.name for path in loose[:3]) or f"{mode:o}"
        yield Check("state folder", "warn", f"others can read private files ({which})", "landreeve-hub doctor --fix")
    else:
        yield Check("state folder", "ok", str(state))


def _settings(state: Path) -> Iterator[Check]:
    from landreeve.settings import SettingsError

    from landreeve_hub.broker.child import find_program
    from landreeve_hub.config import load_config
    from landreeve_hub.errors import BrokerError

    try:
        settings = load_config(state, {}).settings
    except SettingsError as error:
        yield Check("settings", "fail", str(error), f"edit {state / 'hub.toml'}")
        return
    yield Check("settings", "ok", f"fleet {settings.fleet}")
    if settings.broker.url:
        yield Check("broker program", "ok", f"none: the broker is {settings.broker.url}")
        return
    try:
        yield Check("broker program", "ok", str(find_program(settings.broker.kind).path))
    except BrokerError as error:
        yield Check("broker program", "fail", str(error), "apt install mosquitto")


def _disk(state: Path) -> Iterator[Check]:
    free_mb = shutil.disk_usage(state).free // 1_000_000
    if free_mb < LEAST_FREE_MB:
        yield Check("disk", "fail", f"{free_mb} MB free", "free some space, or lower keep.metrics_days")
    else:
        yield Check("disk", "ok", f"{free_mb:,} MB free")


def _authority(state: Path, now: datetime) -> Iterator[Check]:
    from landreeve.trust.certs import describe

    from landreeve_hub.fleet.authority import Authority

    authority = Authority(state)
    authority.stand_in("doctor", now)  # signs: key and certificate are there and belong together
    one = describe(authority.ca_pem.encode())
    left = one.not_after - now
    fact = f"{one.common_name}, good until {one.not_after:%Y-%m-%d}"
    fix = "landreeve-hub ca roll"
    yield Check("authority", "warn" if left < CA_YEARS else "ok", fact, fix if left < CA_YEARS else "")
    if authority.rolling:
        yield Check("authority roll", "warn", "a new authority has begun", "landreeve-hub ca status, then ca finish")
    for name in ("https", "broker", "hub-client"):
        path = state / "ca" / f"{name}.crt"
        if not path.exists():
            continue
        ends = describe(path.read_bytes(), str(path)).not_after
        level: Level = "fail" if ends < now else "warn" if ends - now < SERVER_LEFT else "ok"
        mending = "restart the hub: it renews at start" if level != "ok" else ""
        yield Check(f"certificate {name}", level, f"good until {ends:%Y-%m-%d}", mending)


def _list(state: Path, now: datetime) -> Iterator[Check]:
    from landreeve_hub.fleet.authority import Authority

    signed, expires = Authority(state).crl_times()
    fact = f"signed {signed:%Y-%m-%d %H:%M}, good until {expires:%Y-%m-%d}"
    if expires < now:
        yield Check("revocation list", "fail", fact + ": every device is locked out", "start the hub: it signs anew")
    elif now - signed > CRL_AGE:
        yield Check("revocation list", "warn", fact + ", but it should be signed daily", "keep the hub running")
    else:
        yield Check("revocation list", "ok", fact)


def _signing(state: Path, now: datetime) -> Iterator[Check]:
    """When the signed metadata expires, and private keys that should not lie on this machine."""
    from landreeve_hub.signing.status import examine as standing
    from landreeve_hub.signing.targets import TargetsRepository

    report = standing(state, TargetsRepository(state), now)
    for role in report.roles:
        level: Level = "fail" if role.days_left < 0 else "warn" if role.alarm else "ok"
        fact = f"version {role.version}, {role.days_left:.0f} days left"
        yield Check(f"{role.repository} {role.role}", level, fact, role.alarm)
    for advice in report.advice:
        yield Check("signing", "warn", advice, "landreeve-hub keys status")


def _backup(state: Path, now: datetime) -> Iterator[Check]:
    """Whoever backs the folder up touches ``run/last-backup``: a copy nobody made is the one that is missing."""
    path = state / "run" / "last-backup"
    if not path.exists():
        fix = f"copy {state} while the hub is stopped, or a snapshot of it; then: touch {path}"
        yield Check("backup", "warn", "none is known", fix)
        return
    age = now - datetime.fromtimestamp(path.stat().st_mtime, UTC)
    level: Level = "warn" if age > BACKUP_AGE else "ok"
    yield Check(
        "backup", level, f"{age.days} days old", f"back {state} up, then: touch {path}" if level != "ok" else ""
    )


def _running(state: Path, now: datetime, *, broker: bool) -> Iterator[Check]:
    try:
        pid = int(json.loads((state / "run" / "ports.json").read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        yield Check("hub", "warn", "not running", f"landreeve-hub serve --state {state}")
        return
    hub = connect("", "", state)
    fleet = hub.get("fleet")
    yield Check("hub", "ok", f"running (process {pid}), {fleet['counts']['total']} devices")
    yield from _clock(fleet, now)
    yield from _devices(fleet)
    waiting = hub.get("enrolments")
    if waiting:
        yield Check("enrolment", "warn", f"{len(waiting)} boxes wait for approval", "landreeve-hub device waiting")
    if broker:
        bad = [row for row in hub.post("broker/check", timeout_s=120)["findings"] if not row["ok"]]
        fact = "; ".join(str(row["check"]) for row in bad) or "it keeps devices apart"
        yield Check("broker", "fail" if bad else "ok", fact, "landreeve-hub broker check" if bad else "")


def _clock(fleet: dict[str, Any], now: datetime) -> Iterator[Check]:
    """Devices stamp what they say: a hub far from all of them has the wrong clock, not they."""
    off = abs(datetime.fromisoformat(fleet["hub"]["time"]) - now)
    seen = [datetime.fromisoformat(row["last_seen"]) for row in fleet["devices"] if row["last_seen"]]
    if seen and max(seen) > now + CLOCK:
        yield Check(
            "clock", "fail", f"devices were heard at {max(seen):%Y-%m-%d %H:%M}, later than now", "set the clock"
        )
    elif off > CLOCK:
        yield Check("clock", "warn", f"the hub's clock differs by {off}", "set the clock (timedatectl set-ntp true)")
    else:
        yield Check("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _devices(fleet: dict[str, Any]) -> Iterator[Check]:
    days = {row["site"]: row["certificate_days"] for row in fleet["devices"] if row["certificate_days"] is not None}
    soon = sorted((left, site) for site, left in days.items() if left < SERVER_LEFT.days)
    if soon:
        fact = ", ".join(f"{site} {left:.0f} days" for left, site in soon[:5])
        yield Check("device certificates", "warn", f"not renewed: {fact}", "on the box: landreeve doctor")
    elif days:
        yield Check("device certificates", "ok", f"the next ends in {min(days.values()):.0f} days")
