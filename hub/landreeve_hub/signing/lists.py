"""The signed lists of the targets repository on disk: the approvers' own, and those of roles they delegate to.

Files under ``metadata/targets``; ``timestamp.json`` is written last and decides which state is in force, so a
crash leaves the former one.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from landreeve.blobs.durable import write_durably
from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp

from landreeve_hub.signing.chain import TIMESTAMP_FILE, sign_freshness
from landreeve_hub.signing.errors import SigningError
from landreeve_hub.signing.keyfolder import DIRECTOR_KEY, KeyFolder
from landreeve_hub.signing.roots import TARGETS, repository_folder, root_files

TOP = "targets"


class Lists:
    """Reads the lists in force and puts signed ones into force. Not thread-safe: its owner keeps the order."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._folder = repository_folder(state, TARGETS)
        self._keys = KeyFolder(state)

    @property
    def exist(self) -> bool:
        """Whether anything is in force yet."""
        return (self._folder / TIMESTAMP_FILE).exists()

    def top(self) -> Targets:
        """The approvers' own list."""
        return self.get(TOP)

    def get(self, role: str) -> Targets:
        """The list of a role."""
        return Metadata[Targets].from_bytes(self.text(role).encode()).signed

    def text(self, role: str) -> str:
        """The signed list of a role; empty when there is none yet."""
        version = self._versions().get(role)
        return (self._folder / f"{version}.{role}.json").read_text() if version else ""

    def delegated(self) -> dict[str, Targets]:
        """The lists of the roles the approvers delegate to, as far as there are any, in the order they are asked."""
        roles = self.top().delegations
        return {name: self.get(name) for name in (roles.roles or {} if roles else {}) if self.text(name)}

    def put(self, signed: Mapping[str, str], now: datetime) -> None:
        """Put signed lists (by role) into force beside the others. May be repeated."""
        versions = self._versions() if self.exist else {}
        for role, text in signed.items():
            versions[role] = Metadata[Targets].from_bytes(text.encode()).signed.version
            write_durably(self._folder / f"{versions[role]}.{role}.json", text.encode())
        self._put_in_force(versions, now)

    def freshen(self, now: datetime) -> None:
        """Sign anew which lists are the newest."""
        self._put_in_force(self._versions(), now)

    def metadata(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Every file a device needs to verify the state in force, by name. ``names`` are the targets it will look
        for: lists of roles that have no say about any of them are left out."""
        top = self.top()
        roles = top.delegations.roles or {} if top.delegations else {}
        asked = None if names is None else tuple(names)
        needed = {TOP} | {
            name for name, role in roles.items() if asked is None or any(map(role.is_delegated_path, asked))
        }
        files = [f"{v}.{role}.json" for role, v in self._versions().items() if role in needed]
        wanted = (*files, self._snapshot_name(self.timestamp()), TIMESTAMP_FILE)
        return root_files(self._state, TARGETS) | {name: (self._folder / name).read_text() for name in wanted}

    def timestamp(self) -> Timestamp:
        """What says which state is in force."""
        if not self.exist:
            raise SigningError(f"there is no signed list in {self._folder}; run `landreeve-hub init` first")
        return Metadata[Timestamp].from_file(str(self._folder / TIMESTAMP_FILE)).signed

    def _versions(self) -> dict[str, int]:
        """Version of every list in force by role. What was listed once stays listed (TUF 1.0, 5.5.5)."""
        snapshot = Metadata[Snapshot].from_file(str(self._folder / self._snapshot_name(self.timestamp()))).signed
        return {name.removesuffix(".json"): entry.version for name, entry in snapshot.meta.items()}

    def _put_in_force(self, versions: Mapping[str, int], now: datetime) -> None:
        lists = {role: (v, (self._folder / f"{v}.{role}.json").read_bytes()) for role, v in versions.items()}
        version = self.timestamp().version + 1 if self.exist else 1
        files = sign_freshness(lists, version, self._keys.load(DIRECTOR_KEY), now)
        timestamp = files.pop(TIMESTAMP_FILE)
        for name, text in files.items():
            write_durably(self._folder / name, text.encode())
        write_durably(self._folder / TIMESTAMP_FILE, timestamp.encode())
        self._forget_former({*files, *(f"{v}.{role}.json" for role, v in versions.items())})

    def _forget_former(self, keep: set[str]) -> None:
        for file in self._folder.glob("*.*.json"):
            if file.name not in keep and not file.name.endswith(".root.json"):
                file.unlink()

    def _snapshot_name(self, timestamp: Timestamp) -> str:
        return f"{timestamp.snapshot_meta.version}.snapshot.json"
