"""Everything people do with keys, as calls with plain values: the API and the command line both stand on it."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from landreeve_hub.signing import request as requests
from landreeve_hub.signing import status
from landreeve_hub.signing.approvers import Approver, Approvers, parse_half
from landreeve_hub.signing.changes import ROOTS, Standing
from landreeve_hub.signing.edits import Renew, SetRole
from landreeve_hub.signing.errors import RefusedRequestError
from landreeve_hub.signing.lists import TOP
from landreeve_hub.signing.targets import TargetsRepository

Row = dict[str, Any]


class KeyDesk:
    """One hub's keys. Each call holds the repository's lock; errors are `SigningError`s that say what to do."""

    def __init__(self, state: Path, targets: TargetsRepository, clock: Callable[[], datetime]) -> None:
        self._state = state
        self._targets = targets
        self._clock = clock
        self._approvers = Approvers(state)

    def status(self) -> Row:
        """Every role with its keys and expiry, and what to do."""
        report = status.examine(self._state, self._targets, self._clock())
        return {"roles": [asdict(view) for view in report.roles], "advice": list(report.advice)}

    def rotate(self, name: str, new_key: str, by: str) -> Row:
        """Replace a key; ``new_key`` is the public half (a file's text) of one made elsewhere, or empty."""
        with self._targets.lock:
            key = parse_half(new_key.encode())[1] if new_key else None
            return _shown(self._targets.changes.rotate(name, key, self._clock(), by))

    def renew(self, role: str, by: str) -> Row:
        """Sign the roots, or a list, again for a later expiry."""
        now = self._clock()
        with self._targets.lock:
            changes, lists = self._targets.changes, self._targets.lists
            if role == ROOTS:
                return _shown(changes.renew_roots(now, by))
            known = {TOP: lists.top(), **lists.delegated()}
            if role not in known:
                raise RefusedRequestError(f"{role!r}: renew root, {', '.join(known)}; the hub renews the others itself")
            return _shown(changes.want(Renew(role, known[role].version), now, by))

    def changes(self) -> list[Row]:
        """Every change that awaits signatures."""
        with self._targets.lock:
            return [_shown(one) for one in self._targets.changes.standings()]

    def export(self, id: str) -> Row:  # noqa: A002  as everywhere on the wire
        """The signing request of a change."""
        with self._targets.lock:
            return dict(msgspec.to_builtins(self._targets.changes.export(id)))

    def take(self, data: bytes) -> Row:
        """A request that was signed elsewhere."""
        with self._targets.lock:
            return _shown(self._targets.changes.take(requests.parse(data), self._clock()))

    def drop(self, id: str) -> Row:  # noqa: A002
        """Call a change off."""
        with self._targets.lock:
            self._targets.changes.drop(id)
        return {"id": id, "state": "called off"}

    # --- approvers ---

    def approvers(self) -> list[Row]:
        """Whose keys are known, and which roles they are in."""
        with self._targets.lock:
            roles = self._roles()
            return [
                {**_person(one), "roles": [name for name, edit in roles.items() if one.key in edit.keys]}
                for one in self._approvers.listed()
            ]

    def bring(self, half: str, by: str) -> Row:
        """Bring the public half of one's own key."""
        with self._targets.lock:
            person = parse_half(half.encode())[0].person
            if person != by:
                raise RefusedRequestError(f"this is the key of {person}; {by} can bring only their own")
            return _person(self._approvers.bring(half.encode(), self._clock()))

    def admit(self, keyid: str, by: str) -> Row:
        """Let a key be named in roles; not by whose key it is."""
        with self._targets.lock:
            if self._approvers.find(keyid).person == by:
                raise RefusedRequestError(f"{by} brought this key and cannot also admit it; ask someone else")
            return _person(self._approvers.admit(keyid, by))

    def dismiss(self, keyid: str, by: str) -> Row:
        """Let a key approve nothing any more: it leaves every role, as soon as that is signed."""
        with self._targets.lock:
            found = self._approvers.find(keyid)
            edits = [_without(edit, found) for edit in self._roles().values() if found.key in edit.keys]
            for edit in edits:
                if len(edit.keys) < edit.threshold:
                    raise RefusedRequestError(
                        f"the role {edit.name} needs {edit.threshold} signatures and would have {len(edit.keys)} keys: "
                        "change it first (keys require)"
                    )
            standings = [self._targets.changes.want(edit, self._clock(), by) for edit in edits]
            person = _person(self._approvers.dismiss(keyid, by))
            return {**person, "changes": [_shown(one) for one in standings]}

    def require(self, name: str, paths: tuple[str, ...], threshold: int, people: tuple[str, ...], by: str) -> Row:
        """Let releases of models whose names match be approved by so many people's keys."""
        with self._targets.lock:
            edit = self._approvers.role(name, paths, threshold, people)
            return _shown(self._targets.changes.want(edit, self._clock(), by))

    def _roles(self) -> dict[str, SetRole]:
        """The delegated roles in force, as the edits that would make them."""
        delegations = self._targets.lists.top().delegations
        keys = {one.keyid: one.key for one in self._approvers.listed()}
        return {
            name: SetRole(
                name, tuple(role.paths or ()), role.threshold, tuple(keys[k] for k in role.keyids if k in keys)
            )
            for name, role in (delegations.roles or {} if delegations else {}).items()
        }


def _without(edit: SetRole, approver: Approver) -> SetRole:
    return msgspec.structs.replace(edit, keys=tuple(key for key in edit.keys if key != approver.key))


def _shown(standing: Standing) -> Row:
    return {
        "id": standing.id,
        "subject": standing.subject,
        "state": "in force" if standing.in_force else "awaiting signatures",
        "signatures": f"{standing.have} of {standing.need}" if standing.need else "",
        "missing": list(standing.missing) if not standing.in_force else [],
        "what": list(standing.what),
        "how": "" if standing.in_force else f"landreeve-hub keys export {standing.id} --out FILE; {requests.HOW}",
    }


def _person(one: Approver) -> Row:
    return {
        "person": one.person,
        "keyid": one.keyid,
        "state": one.state,
        "brought": one.brought,
        "judged_by": one.judged_by,
    }
