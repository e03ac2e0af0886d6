"""How the fleet's signing stands: every role with its keys, where they are, and how long it still holds."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Root, Targets

from landreeve_hub.signing.chain import FRESH_LIFETIME, TARGETS_LIFETIME
from landreeve_hub.signing.keyfolder import ALL_KEYS, AWAY, TARGETS_KEY, KeyFolder
from landreeve_hub.signing.lists import TOP
from landreeve_hub.signing.request import plain_name
from landreeve_hub.signing.roots import REPOSITORIES, ROOT_LIFETIME, TARGETS, newest_root
from landreeve_hub.signing.targets import TargetsRepository

ALARM_AT = 0.5
"""Share of a lifetime after which people are told to sign anew."""


@dataclass(frozen=True, slots=True)
class Signer:
    """One key of a role, by its public half. ``where`` its private half is: ``here`` (on the hub), ``credentials``
    (systemd) or ``elsewhere``."""

    name: str
    keyid: str
    where: str


@dataclass(frozen=True, slots=True)
class RoleView:
    """One role. ``keys`` says of each of ``signers`` in one text who it is and where."""

    repository: str
    role: str
    version: int
    threshold: int
    keys: tuple[str, ...]
    expires: str
    days_left: float
    alarm: str = ""
    signers: tuple[Signer, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """``advice`` is what an operator should do, the most pressing first."""

    roles: tuple[RoleView, ...]
    advice: tuple[str, ...]


def examine(state: Path, targets: TargetsRepository, now: datetime) -> Report:
    """The report; reads no private key."""
    keys = KeyFolder(state)
    here = {key.keyid: keys.where(name) for name in ALL_KEYS if (key := keys.public(name)) is not None}
    with targets.lock:
        views = [view for repository in REPOSITORIES for view in _of_root(repository, state, here, now)]
        lists = {TOP: targets.lists.top(), **targets.lists.delegated()}
        views += [_list(role, listed, lists[TOP], state, (here, now)) for role, listed in lists.items()]
        expires = targets.lists.timestamp().expires
        views.append(
            _view((TARGETS, "timestamp"), (newest_root(state, TARGETS), here), 0, expires, FRESH_LIFETIME, now)
        )
        waiting = [
            f"{one.id}: {one.sentence}; landreeve-hub keys export {one.id}" for one in targets.changes.standings()
        ]
    return Report(tuple(views), (*_alarms(views), *waiting, *_left_here(keys, lists[TOP])))


def _of_root(repository: str, state: Path, here: dict[str, str], now: datetime) -> list[RoleView]:
    root = newest_root(state, repository)
    return [_view((repository, "root"), (root, here), root.version, root.expires, ROOT_LIFETIME, now)]


def _list(role: str, listed: Targets, top: Targets, state: Path, known: tuple[dict[str, str], datetime]) -> RoleView:
    delegator = newest_root(state, TARGETS) if role == TOP else top
    here, now = known
    return _view((TARGETS, role), (delegator, here), listed.version, listed.expires, TARGETS_LIFETIME, now)


def _view(  # noqa: PLR0917  columns of one row
    name: tuple[str, str],
    keys: tuple[Root | Targets, dict[str, str]],
    version: int,
    expires: datetime,
    lifetime: timedelta,
    now: datetime,
) -> RoleView:
    delegator, here = keys
    role = delegator.get_delegated_role(name[1])
    left = (expires - now) / timedelta(days=1)
    signers = tuple(_signer(delegator.get_key(keyid), here) for keyid in role.keyids)
    return RoleView(
        *name,
        version,
        role.threshold,
        tuple(f"{_named(one)}: {one.where}" for one in signers),
        expires.isoformat(timespec="seconds"),
        round(left, 1),
        "expired" if left <= 0 else "sign anew" if expires - now < lifetime * (1 - ALARM_AT) else "",
        signers,
    )


def _signer(key: Key, here: dict[str, str]) -> Signer:
    where = here.get(key.keyid, "elsewhere")
    return Signer(plain_name(key), key.keyid, "here" if where == "state" else where)


def _named(one: Signer) -> str:
    return f"{one.name} ({one.keyid[:8]})" if one.name else one.keyid[:8]


def _alarms(views: list[RoleView]) -> list[str]:
    pressing = sorted((view for view in views if view.alarm), key=lambda view: view.days_left)
    return [
        f"{view.repository} {view.role} {'expired' if view.days_left <= 0 else 'expires'} "
        f"{'' if view.days_left <= 0 else f'in {view.days_left:.0f} days'}: {_remedy(view.role)}".replace(" :", ":")
        for view in pressing
    ]


def _remedy(role: str) -> str:
    if role == "timestamp":
        return "the hub renews it while it runs and has the director key; see its log"
    return f"landreeve-hub keys renew {role}; until then nothing new is installed once it has expired"


def _left_here(keys: KeyFolder, top: Targets) -> list[str]:
    """Private keys that should not be on the hub's machine."""
    here = [name for name in AWAY if keys.has(name)]
    advice = []
    if here:
        advice.append(
            f"{' and '.join(here)} {'are' if len(here) > 1 else 'is'} still on this machine: copy each file of "
            "keys/ to a storage of its own away from it, look at both copies (keys show FILE), then delete them here"
        )
    if top.delegations and top.delegations.roles and keys.has(TARGETS_KEY):
        advice.append(
            "approvers have keys of their own, but the targets key, which may overrule them, is on this machine: "
            "move it away"
        )
    return advice
