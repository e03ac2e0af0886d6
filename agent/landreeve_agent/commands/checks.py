"""``landreeve doctor``: what is checked, and how each finding is mended."""

import os
import shutil
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from landreeve.cli import Check
from landreeve.settings import SettingsError
from landreeve.trust import expiry
from landreeve.trust.floor import clock_problem, read_floor

from landreeve_agent.commands.client import connect, is_running
from landreeve_agent.config import StateFolder, load_settings
from landreeve_agent.console.status import CLOCK_OFF_S
from landreeve_agent.version import BUILD_TIME

_LEAST_FREE_MB = 500


def examine(state: StateFolder, environ: Mapping[str, str], *, broker: bool = False) -> list[Check]:
    """Every check of a box, whether or not its agent runs. ``broker`` also tries the broker as this device."""
    checks = [_folder(state)]
    if checks[0].state == "fail":
        return checks
    checks += [_settings(state, environ), _disk(state), *_at_rest(state, environ), *_hardware(state)]
    checks += _definitions(state)
    return [*checks, *_time(state), *_link(state, broker=broker), *_living(state)]


def _link(state: StateFolder, *, broker: bool) -> list[Check]:
    from landreeve_agent.commands.checks_link import examine_link

    return examine_link(state, broker=broker)


def _folder(state: StateFolder) -> Check:
    if not state.root.is_dir():
        return Check("state folder", "fail", f"{state.root} does not exist", "landreeve init")
    if not os.access(state.root, os.R_OK | os.W_OK | os.X_OK):
        return Check("state folder", "fail", f"{state.root} is not writable", "use the account the agent runs as")
    mode = stat.S_IMODE(state.root.stat().st_mode)
    if mode & 0o077:
        return Check("state folder", "warn", f"others can look into it ({mode:o})", f"chmod 700 {state.root}")
    return Check("state folder", "ok", str(state.root))


def _settings(state: StateFolder, environ: Mapping[str, str]) -> Check:
    try:
        load_settings(state, environ, {})
    except SettingsError as error:
        return Check("settings", "fail", str(error), f"edit {state.settings_file}")
    return Check("settings", "ok", "every key is known and has a good value")


def _at_rest(state: StateFolder, environ: Mapping[str, str]) -> list[Check]:
    """Of a sealed site: whether memory is where its plain data stays. Its parts are counted by ``store status``."""
    if not state.vault.exists():
        return []
    from landreeve_agent.sealing import IN_MEMORY, MEMORY, file_system, swap_on

    try:
        scratch = load_settings(state, environ, {}).values.at_rest.scratch
    except SettingsError:
        return []  # told of by the check of the settings
    place = Path(scratch) if scratch else MEMORY
    if disks := swap_on():
        fact = f"sealed, and what is in memory may be written to {', '.join(disks)}"
        return [Check("at rest", "warn", fact, "swapoff, encrypt the swap, or MemorySwapMax=0 in the unit")]
    if (kind := file_system(place)) not in IN_MEMORY:
        fact = f"sealed; {place} lies on {kind or 'nothing known'}, so no graph is quantised here"
        return [Check("at rest", "warn", fact, "set at_rest.scratch to a folder on a tmpfs")]
    return [Check("at rest", "ok", f"sealed; plain data stays in memory ({place})")]


def _disk(state: StateFolder) -> Check:
    free_mb = shutil.disk_usage(state.root).free // 1_000_000
    if free_mb < _LEAST_FREE_MB:
        return Check("disk", "fail", f"{free_mb} MB free", "free some space, or lower intake.keep_days")
    return Check("disk", "ok", f"{free_mb:,} MB free")


def _hardware(state: StateFolder) -> list[Check]:
    """Heat, devices that cannot be used, and devices that did not work when they were last tried."""
    from landreeve_agent.hardware.survey import Survey

    found = Survey(state.hardware).remembered()
    checks = [Check("heat", "warn", found.heat.problem, "cool it, or mend its power")] if found.heat.problem else []
    checks += [Check(a.name, "warn", a.problem, a.fix) for a in found.accelerators if not a.usable]
    checks += [
        Check(f"{p.runtime} on {p.target}", "warn", f"{p.cause}: {p.sentence}", "mend it, then: landreeve hw prove")
        for p in found.proofs
        if not p.ok
    ]
    return checks or [Check("hardware", "ok", found.text)]


def _definitions(state: StateFolder) -> list[Check]:
    from landreeve_agent.intake.definitions import Definitions

    definitions = Definitions(state.definitions)
    bad = [
        Check(f"model {name}", "fail", sentence, "landreeve model add FOLDER")
        for name, sentence in definitions.problems.items()
    ]
    if bad:
        return bad
    names = ", ".join(definitions)
    return [
        Check("models", "ok" if names else "warn", names or "none yet", "" if names else "landreeve model add FOLDER")
    ]


def _time(state: StateFolder) -> list[Check]:
    """The clock against the time floor, and how long what the hub signed still holds."""
    if not state.identity.exists():
        return []
    now, floor = datetime.now(UTC), read_floor(state.trust, BUILD_TIME)
    problem = clock_problem(now, floor)
    fix = "set the clock (timedatectl), or let it be set by NTP; predictions go on meanwhile" if problem else ""
    fact = problem or f"{now:%Y-%m-%d %H:%M} UTC, not before {floor:%Y-%m-%d}"
    checks = [Check("clock", "fail" if problem else "ok", fact, fix)]
    first = expiry.first_expiry(state.trust)
    if first is not None:
        what, when = first
        late = when <= now
        fact = f"{what} {'expired' if late else 'holds until'} {when:%Y-%m-%d %H:%M} UTC"
        fix = "reach the hub, which signs anew; or set the clock if it is wrong" if late else ""
        checks.append(Check("signed metadata", "warn" if late else "ok", fact, fix))
    return checks


def _clock_of(hub: Mapping[str, Any]) -> list[Check]:
    ahead = hub.get("clock_ahead_s")
    if ahead is None:
        return []
    off = abs(ahead) >= CLOCK_OFF_S
    fact = f"{abs(ahead):.0f} s {'ahead of' if ahead >= 0 else 'behind'} the hub's"
    return [Check("clock and hub", "warn" if off else "ok", fact, "set the clock that is wrong" if off else "")]


def _living(state: StateFolder) -> list[Check]:
    if not is_running(state):
        return [Check("agent", "warn", "not running", "landreeve run")]
    status = connect(state).get("/status")
    verdict, hub, worker = status["verdict"], status["hub"], status["worker"]
    checks = [Check("agent", "fail" if verdict["level"] == "error" else "ok", verdict["sentence"], verdict["detail"])]
    if hub["state"] == "unreachable":
        fix = "check the line to the hub; nothing is lost meanwhile"
        checks.append(Check("hub link", "warn", f"unreachable, {hub['waiting']} facts wait", fix))
    elif hub["state"] != "not_joined":
        checks.append(Check("hub link", "ok", f"{hub['state'].replace('_', ' ')}, {hub['waiting']} facts wait"))
    checks += _clock_of(hub)
    if worker["pid"]:
        checks.append(Check("worker", "ok", f"pid {worker['pid']}, {worker['restarts']} restarts"))
    return checks
