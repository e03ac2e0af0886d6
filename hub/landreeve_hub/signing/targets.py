"""The targets repository: which releases approvers have signed, whoever may run them.

Who signs is decided by the names of models: the first delegated role whose paths match (``models/flight-*/*``),
else the approvers' own list. A release counts once its list is in force.
"""

import threading
from datetime import datetime
from pathlib import Path

from landreeve.trust.document import Component, component_of, release_name, target_name
from landreeve.wire.ids import check_digest, check_id
from tuf.api.metadata import TargetFile, Targets

from landreeve_hub.signing.chain import FRESH_LIFETIME, TARGETS_LIFETIME, is_due
from landreeve_hub.signing.changes import ChangeBook, Standing
from landreeve_hub.signing.edits import AddTarget, RemoveTarget, Renew
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.signing.lists import TOP, Lists


class TargetsRepository:
    """The approvers' lists under a hub's state folder (after `landreeve_hub.signing.roots.init`).

    Thread-safe within one process: hold ``lock`` around ``changes``. Reading needs no key.
    """

    def __init__(self, state: Path) -> None:
        self.lists = Lists(state)
        self.changes = ChangeBook(state, self.lists)
        self.lock = threading.RLock()

    def add_release(  # noqa: PLR0917  the order in which a release is spoken of everywhere
        self, digest: str, length: int, model: str, version: str, approved_by: str, now: datetime
    ) -> Standing:
        """Sign a release (sha256 and length of its manifest): how far that is. The same again changes nothing;
        `SigningError` when the digest is listed with other facts."""
        facts = {"model": check_id(model), "version": check_id(version)}
        with self.lock:
            role, name = self._place(digest, model)
            target = _target(name, digest, length, facts, approved_by, now)
            known = self._known(digest) or self._wanted(role, name)
            if known is not None and _facts(known) != _facts(target):
                raise SigningError(f"release {digest[:12]} is already signed as {_facts(known)}; withdraw it first")
            if known is not None and self._known(digest) is not None:
                return Standing("", role, (), in_force=True)
            return self.changes.want(AddTarget(role, name, (known or target).to_dict()), now, approved_by)

    def remove_release(self, digest: str, now: datetime, by: str = "") -> Standing | None:
        """Withdraw a release: no device installs it from now on. None for unknown ones."""
        with self.lock:
            standing = None
            for role, listed in self._every().items():
                for name, target in listed.targets.items():
                    if target.hashes.get("sha256") == digest:
                        standing = self.changes.want(RemoveTarget(role, name), now, by)
            for edit in self._adding(digest):
                standing = self.changes.want(RemoveTarget(edit.role, edit.name), now, by)
            return standing

    def releases(self) -> dict[str, int]:
        """Signed releases that are not being withdrawn: sha256 of the manifest to its length in bytes."""
        with self.lock:
            found = {}
            for role, listed in self._every().items():
                leaving = {one.name for one in self.changes.wants(role) if isinstance(one, RemoveTarget)}
                for name, target in listed.targets.items():
                    if name not in leaving and component_of(target.custom) == Component.MODEL:
                        found[target.hashes["sha256"]] = target.length
            return found

    def standing(self, digest: str) -> str:
        """What an approval of that release waits for, in words; empty when it waits for nothing."""
        with self.lock:
            return next((self.changes.standing_of(edit).sentence for edit in self._adding(digest)), "")

    def metadata(self, models: dict[str, str] | None = None) -> dict[str, str]:
        """Every file a device needs to verify the state in force, by name; of delegated roles only those with a say
        about these releases (model by digest), or all."""
        names = None if models is None else [target_name(Component.MODEL, m, digest) for digest, m in models.items()]
        with self.lock:
            return self.lists.metadata(names)

    def refresh(self, now: datetime) -> bool:
        """Sign anew what has used half of its life, or was signed by a clock ahead; whether anything was.

        A list needs its signers' keys: without them here, only snapshot and timestamp are renewed, and a renewal of
        the list is open for them to sign.
        """
        with self.lock:
            if not self.lists.exist:
                self.changes.want(Renew(TOP, 0), now, "hub")
                return self.lists.exist
            before = self.lists.timestamp().version
            for role, listed in self._every().items():
                if is_due(listed.expires, TARGETS_LIFETIME, now) and not self.changes.wants(role):
                    self.changes.want(Renew(role, listed.version), now, "hub")
            if is_due(self.lists.timestamp().expires, FRESH_LIFETIME, now):
                self.lists.freshen(now)
            return self.lists.timestamp().version != before

    def role_of(self, model: str) -> str:
        """Whose signatures approve releases of a model."""
        return self._place("0" * 64, model)[0]

    def _place(self, digest: str, model: str) -> tuple[str, str]:
        """Who lists a release, and under which name."""
        name = target_name(Component.MODEL, model, digest)
        top = self.lists.top()
        for role, entry in (top.delegations.roles or {} if top.delegations else {}).items():
            if entry.is_delegated_path(name):
                return role, name
        return TOP, release_name(digest)

    def _every(self) -> dict[str, Targets]:
        return {TOP: self.lists.top(), **self.lists.delegated()}

    def _known(self, digest: str) -> TargetFile | None:
        for listed in self._every().values():
            for target in listed.targets.values():
                if target.hashes.get("sha256") == digest:
                    return target
        return None

    def _adding(self, digest: str) -> list[AddTarget]:
        names = [TOP, *self._roles()]
        edits = [edit for role in names for edit in self.changes.wants(role)]
        return [one for one in edits if isinstance(one, AddTarget) and one.name.endswith(f"/{digest}")]

    def _roles(self) -> list[str]:
        delegations = self.lists.top().delegations
        return list(delegations.roles or {}) if delegations else []

    def _wanted(self, role: str, name: str) -> TargetFile | None:
        for edit in self.changes.wants(role):
            if isinstance(edit, AddTarget) and edit.name == name:
                return TargetFile.from_dict(dict(edit.target), name)
        return None


def _target(  # noqa: PLR0917  facts of one target
    name: str, digest: str, length: int, facts: dict[str, str], approved_by: str, now: datetime
) -> TargetFile:
    custom = {**facts, "approved_by": approved_by, "approved": now.isoformat()}
    return TargetFile(length, {"sha256": check_digest(digest)}, name, {"custom": custom})


def _facts(target: TargetFile) -> str:
    return f"{target.custom['model']} {target.custom['version']} of {target.length} bytes"
