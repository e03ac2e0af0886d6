"""A TUF repository in memory that signs whatever a test wants, good or bad, with keys of its own.

It is written against the specification and shares no line with the hub's signing: what devices accept must not
depend on what our own hub happens to produce.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

TOP = ("root", "timestamp", "snapshot", "targets")
Signed = Root | Timestamp | Snapshot | Targets


class TufRepository:
    """Change the public parts, then `publish` (and `new_root` for root and keys). ``files`` is what a client is
    offered; ``roots[n - 1]`` is root n as text."""

    def __init__(self, now: datetime) -> None:
        late = now + timedelta(days=30)
        self.signers: dict[str, list[CryptoSigner]] = {role: [CryptoSigner.generate_ed25519()] for role in TOP}
        self.root = Root(version=1, expires=late, consistent_snapshot=True)
        self.timestamp = Timestamp(expires=late)
        self.snapshot = Snapshot(expires=late)
        self.targets = Targets(expires=late)
        self.delegated: dict[str, Targets] = {}
        self.issued = now - timedelta(hours=1)
        self.roots: list[str] = []
        for role in TOP:
            self.root.add_key(self.signers[role][0].public_key, role)
        self.roots.append(self.sign("root", self.root))
        for signed in (self.timestamp, self.snapshot, self.targets):
            signed.version = 0  # before the first is published

    def new_root(self, *, also: Iterable[CryptoSigner] = ()) -> None:
        """Sign the root as its next version, by its keys and by ``also`` (those of the root before)."""
        self.root.version += 1
        self.roots.append(self.sign("root", self.root, also))

    def replace_keys(self, role: str, count: int = 1, threshold: int = 1) -> list[CryptoSigner]:
        """Give a top-level role new keys in the root, which is yet to be signed; the former keys."""
        former = self.signers[role]
        for signer in former:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in range(count)]
        for signer in self.signers[role]:
            self.root.add_key(signer.public_key, role)
        self.root.roles[role].threshold = threshold
        return former

    def delegate(self, name: str, paths: list[str], *, keys: int = 1, threshold: int = 1) -> Targets:
        """A delegated role for the paths, with keys of its own and an empty list."""
        self.signers[name] = [CryptoSigner.generate_ed25519() for _ in range(keys)]
        role = DelegatedRole(name, [], threshold, terminating=False, paths=paths)
        if self.targets.delegations is None:
            self.targets.delegations = Delegations({}, {})
        assert self.targets.delegations.roles is not None
        self.targets.delegations.roles[name] = role
        for signer in self.signers[name]:
            self.targets.add_key(signer.public_key, name)
        self.delegated[name] = Targets(expires=self.targets.expires)
        self.delegated[name].version = 0
        return self.delegated[name]

    def publish(self) -> dict[str, str]:
        """The next version of everything but the root; every file a client is offered."""
        files: dict[str, str] = {}
        for name, listed in {"targets": self.targets, **self.delegated}.items():
            listed.version += 1
            files |= self.cover(name, listed)
        return files | self.freshen()

    def cover(self, name: str, listed: Targets) -> dict[str, str]:
        """A list under its own signature, named in the snapshot."""
        text = self.sign(name, listed)
        self.snapshot.meta[f"{name}.json"] = MetaFile.from_data(listed.version, text.encode(), ["sha256"])
        return {f"{listed.version}.{name}.json": text}

    def freshen(self) -> dict[str, str]:
        """The next snapshot and timestamp, and every root after the first."""
        self.snapshot.version += 1
        snapshot = self.sign("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, snapshot.encode(), ["sha256"])
        return {f"{self.snapshot.version}.snapshot.json": snapshot} | self.stamp() | self.later_roots()

    def stamp(self) -> dict[str, str]:
        """The next timestamp alone."""
        self.timestamp.version += 1
        self.timestamp.unrecognized_fields["x-issued"] = self.issued.isoformat()
        return {"timestamp.json": self.sign("timestamp", self.timestamp)}

    def later_roots(self) -> dict[str, str]:
        """Every root after the first by file name."""
        return {f"{n}.root.json": text for n, text in enumerate(self.roots[1:], start=2)}

    def sign(self, role: str, signed: Signed, also: Iterable[CryptoSigner] = ()) -> str:
        """The metadata under the signatures of the role's keys."""
        metadata: Metadata[Signed] = Metadata(signed)
        for signer in (*self.signers[role], *also):
            metadata.sign(signer, append=True)
        return metadata.to_bytes().decode()


def target(name: str, digest: str, length: int, **custom: str) -> TargetFile:
    """A target of that sha256 and length."""
    return TargetFile(length, {"sha256": digest}, name, {"custom": custom} if custom else None)
