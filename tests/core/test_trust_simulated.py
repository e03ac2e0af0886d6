"""Attacks on each role of both repositories, made by a repository that signs whatever it is told to.

What our own hub signs, and what a thief of its keys can do, is in test_trust_attacks.py.
"""

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from landreeve.trust import client
from landreeve.trust.anchor import install
from landreeve.trust.client import RepositoryClient
from landreeve.trust.document import DOCUMENT_NAME, Component, document_text, release_name, target_name
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.messages import Desired, DesiredModel, SignedDesired
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadLengthMismatchError
from tuf.api.metadata import TargetFile

from tests.fakes.tuf_repository import TufRepository, target

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUILT = NOW - timedelta(days=60)
GOOD = "a" * 64
REPOSITORIES = ("director", "targets")
BELOW_ROOT = ("timestamp", "snapshot", "targets")
MODEL = DesiredModel(model="flight-delay", release=GOOD, version="v1", manifest_bytes=700, rollout="r-1")
DELEGATED = target_name(Component.MODEL, "flight-delay", GOOD)


class World:
    """A director and an approvers' repository, and one device that trusts their first roots."""

    def __init__(self, trust_dir: Path) -> None:
        self.repositories = {name: TufRepository(NOW) for name in REPOSITORIES}
        self.director, self.targets = self.repositories["director"], self.repositories["targets"]
        self.trust_dir = trust_dir
        install(trust_dir, {name: one.roots[0] for name, one in self.repositories.items()}, NOW - timedelta(days=1))
        self.approve(target(release_name(GOOD), GOOD, 700, model="flight-delay", version="v1"))
        self.generation = 0

    def approve(self, listed: TargetFile) -> None:
        self.targets.targets.targets[listed.path] = listed

    def order(self) -> SignedDesired:
        """The next good document, everything signed anew."""
        self.generation += 1
        desired = Desired(device="d-1", generation=self.generation, issued=NOW.isoformat(), models=(MODEL,))
        document = document_text(desired)
        listed = (
            TargetFile.from_data(DOCUMENT_NAME, document.encode(), ["sha256"]),
            target(release_name(GOOD), GOOD, 700),
        )
        self.director.targets.targets = {one.path: one for one in listed}
        self.director.targets.version = self.generation - 1
        files = {name: one.publish() for name, one in self.repositories.items()}
        return SignedDesired(generation=self.generation, document=document, **files)

    def sees(self, signed: SignedDesired, now: datetime = NOW) -> Believed | Cause:
        verdict = DesiredVerifier(self.trust_dir, "d-1", BUILT).verify(signed, now)
        if isinstance(verdict, Rejected):
            assert verdict.sentence.endswith(".")
            return verdict.cause
        return verdict

    def with_files(self, signed: SignedDesired, repository: str, files: dict[str, str]) -> SignedDesired:
        return msgspec.structs.replace(signed, **{repository: {**getattr(signed, repository), **files}})


@pytest.fixture
def world() -> Iterator[World]:
    memory = Path("/dev/shm")  # what is synced costs nothing there; that it is synced is tested elsewhere
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        world = World(Path(folder) / "trust")
        assert isinstance(world.sees(world.order()), Believed)
        yield world


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_rollback_of_the_timestamp(world: World, repository: str) -> None:
    one = world.repositories[repository]
    old = {"timestamp.json": one.sign("timestamp", one.timestamp)}
    assert isinstance(world.sees(world.order()), Believed)
    assert world.sees(world.with_files(world.order(), repository, old)) is Cause.DOWNGRADE


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_rollback_of_the_snapshot_by_a_thief_of_the_timestamp_key(world: World, repository: str) -> None:
    one = world.repositories[repository]
    assert isinstance(world.sees(world.order()), Believed)
    one.snapshot.version = 0
    assert world.sees(world.order()) is Cause.DOWNGRADE


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_rollback_of_the_list_by_a_thief_of_both_online_keys(world: World, repository: str) -> None:
    one = world.repositories[repository]
    assert isinstance(world.sees(world.order()), Believed)
    signed = world.order()
    one.targets.version = 1
    files = one.cover("targets", one.targets) | one.freshen()
    assert world.sees(world.with_files(signed, repository, files)) is Cause.DOWNGRADE


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_rollback_of_the_root(world: World, repository: str) -> None:
    one = world.repositories[repository]
    replayed = {"2.root.json": one.roots[0]}
    assert world.sees(world.with_files(world.order(), repository, replayed)) is Cause.DOWNGRADE


@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.parametrize("role", ["root", *BELOW_ROOT])
def test_expired_role_installs_nothing(world: World, repository: str, role: str) -> None:
    one = world.repositories[repository]
    getattr(one, role).expires = NOW - timedelta(seconds=1)
    if role == "root":
        one.new_root()
    assert world.sees(world.order()) is Cause.EXPIRED
    assert isinstance(world.sees(world.order(), NOW - timedelta(seconds=2)), Believed)


def test_freeze_ends_when_the_timestamp_expires(world: World) -> None:
    frozen = world.order()
    assert isinstance(world.sees(frozen, NOW + timedelta(days=29)), Believed)
    assert world.sees(frozen, NOW + timedelta(days=31)) is Cause.EXPIRED


@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match_of_two_states(world: World, repository: str, role: str) -> None:
    one = world.repositories[repository]
    signed = world.order()
    other = getattr(one, role)
    other.expires += timedelta(seconds=1)
    files = {f"{other.version}.{role}.json": one.sign(role, other)}
    assert world.sees(world.with_files(signed, repository, files)) is Cause.MIX_AND_MATCH


@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.parametrize("role", BELOW_ROOT)
def test_wrong_key_of_a_role(world: World, repository: str, role: str) -> None:
    one = world.repositories[repository]
    one.signers[role] = [CryptoSigner.generate_ed25519()]
    assert world.sees(world.order()) is Cause.BAD_SIGNATURE


@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.parametrize("role", ["root", *BELOW_ROOT])
def test_threshold_of_a_role_not_met(world: World, repository: str, role: str) -> None:
    """Two keys, two needed: one signature, or the same one under two names, is not enough."""
    one = world.repositories[repository]
    former = one.replace_keys(role, count=2, threshold=2)
    one.new_root(also=former if role == "root" else ())
    every = one.signers[role]
    one.signers[role] = every[:1]
    if role == "root":
        one.new_root()
    assert world.sees(world.order()) is Cause.BAD_SIGNATURE
    one.signers[role] = every
    if role == "root":
        one.roots.pop()
        one.root.version -= 1
    assert isinstance(world.sees(world.order()), Believed)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_root_rotation_is_followed_step_by_step(world: World, repository: str) -> None:
    one = world.repositories[repository]
    for _ in range(5):
        one.new_root(also=one.replace_keys("root"))
        one.replace_keys("timestamp")
        one.replace_keys("targets")
        one.new_root()
    assert len(one.roots) == 11
    signed = world.order()
    gap = {name: text for name, text in getattr(signed, repository).items() if name != "6.root.json"}
    assert world.sees(msgspec.structs.replace(signed, **{repository: gap})) is Cause.BAD_SIGNATURE
    assert isinstance(world.sees(signed), Believed)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_root_signed_by_its_new_keys_alone(world: World, repository: str) -> None:
    one = world.repositories[repository]
    one.replace_keys("root")
    one.new_root()
    assert world.sees(world.order()) is Cause.BAD_SIGNATURE


@pytest.mark.parametrize("role", BELOW_ROOT)
def test_fast_forward_is_undone_by_replacing_the_stolen_key(world: World, role: str) -> None:
    """A thief signs version 2³¹; after the key is replaced, honest and lower numbers count again (TUF 5.3.11)."""
    one = world.targets
    honest = getattr(one, role).version
    getattr(one, role).version = 2**31
    assert isinstance(world.sees(world.order()), Believed)
    getattr(one, role).version = honest
    assert world.sees(world.order()) is Cause.DOWNGRADE
    for name in ("timestamp", "snapshot"):
        one.replace_keys(name)
    one.new_root()
    assert isinstance(world.sees(world.order()), Believed)


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_replaced_key_stays_replaced_though_the_message_was_refused(world: World, repository: str) -> None:
    """A broker that shows a new root and then hides it again must not bring the stolen key back."""
    one = world.repositories[repository]
    stolen = one.replace_keys("timestamp")
    one.new_root()
    signed = world.order()
    refused = world.with_files(signed, repository, {"timestamp.json": "{"})
    assert isinstance(world.sees(refused), Cause)
    one.signers["timestamp"] = stolen
    replayed = world.order()
    hidden = {name: text for name, text in getattr(replayed, repository).items() if name != "2.root.json"}
    assert world.sees(msgspec.structs.replace(replayed, **{repository: hidden})) is Cause.BAD_SIGNATURE
    assert isinstance(world.sees(signed), Believed)


@pytest.mark.parametrize(
    ("role", "limit"),
    [
        ("2.root", client.MAX_ROOT_BYTES),
        ("timestamp", client.MAX_TIMESTAMP_BYTES),
        ("2.snapshot", client.MAX_SNAPSHOT_BYTES),
        ("2.targets", client.MAX_TARGETS_BYTES),
    ],
)
def test_oversized_metadata(world: World, role: str, limit: int) -> None:
    name, one = f"{role}.json", world.targets
    signed = world.order()
    one.snapshot.version -= 1
    one.snapshot.meta["targets.json"].length = one.snapshot.meta["targets.json"].hashes = None
    files = {**signed.targets, **one.freshen()}
    one.timestamp.snapshot_meta.length = one.timestamp.snapshot_meta.hashes = None
    files |= one.stamp()
    text = files.get(name, one.roots[0])
    refused = world.with_files(signed, "targets", files | {name: text + " " * (limit + 1 - len(text))})
    verdict = DesiredVerifier(world.trust_dir, "d-1", BUILT).verify(refused, NOW)
    assert isinstance(verdict, Rejected)
    assert str(limit) in verdict.sentence
    assert isinstance(world.sees(world.with_files(signed, "targets", files)), Believed)


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_endless_data_is_cut_off(world: World, name: str, tmp_path: Path) -> None:
    served, taken = world.order().targets, 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 4096
            yield b" " * 4096

    def read(wanted: str) -> bytes | Iterator[bytes] | None:
        if wanted == name:
            return endless()
        return served[wanted].encode() if wanted in served else None

    folder = tmp_path / "cache"
    folder.mkdir()
    with pytest.raises(DownloadLengthMismatchError):
        RepositoryClient(folder, world.targets.roots[0].encode(), read, NOW).refresh()
    assert 0 < taken <= client.MAX_TARGETS_BYTES + 4096


def test_arbitrary_package_is_not_installed(world: World) -> None:
    del world.targets.targets.targets[release_name(GOOD)]
    assert world.sees(world.order()) is Cause.NOT_APPROVED


@pytest.mark.parametrize("component", ["agent", "firmware", "something-new"])
def test_target_of_another_kind_is_no_model(world: World, component: str) -> None:
    facts = {"model": "flight-delay", "version": "v1", "component": component}
    world.approve(target(release_name(GOOD), GOOD, 700, **facts))
    assert world.sees(world.order()) is Cause.DISAGREEMENT


# --- approvers as delegated roles ---


@pytest.fixture
def approvers(world: World) -> World:
    """Releases come from a delegated role of two keys, both needed."""
    del world.targets.targets.targets[release_name(GOOD)]
    role = world.targets.delegate("flights", ["models/flight-*/*"], keys=2, threshold=2)
    role.targets[DELEGATED] = target(DELEGATED, GOOD, 700, model="flight-delay", version="v1")
    return world


def test_two_approvers_let_a_release_in(approvers: World) -> None:
    believed = approvers.sees(approvers.order())
    assert isinstance(believed, Believed)
    assert believed.releases == {GOOD: 700}


def test_one_approver_of_two_is_not_enough(approvers: World) -> None:
    one = approvers.targets
    one.signers["flights"] = one.signers["flights"][:1]
    assert approvers.sees(approvers.order()) is Cause.BAD_SIGNATURE


def test_one_approver_signing_twice_is_not_enough(approvers: World) -> None:
    one = approvers.targets
    one.signers["flights"] = one.signers["flights"][:1] * 2
    assert approvers.sees(approvers.order()) is Cause.BAD_SIGNATURE


def test_approvers_of_other_models_cannot_let_it_in(approvers: World) -> None:
    one = approvers.targets
    tills = one.delegate("tills", ["models/till-*/*"])
    tills.targets |= one.delegated["flights"].targets
    one.delegated["flights"].targets = {}
    assert approvers.sees(approvers.order()) is Cause.NOT_APPROVED


def test_removed_approver_is_worth_nothing(approvers: World) -> None:
    one = approvers.targets
    assert isinstance(approvers.sees(approvers.order()), Believed)
    one.targets.revoke_key(one.signers["flights"][0].public_key.keyid, "flights")
    one.targets.delegations.roles["flights"].threshold = 1
    kept = one.signers["flights"]
    one.signers["flights"] = kept[:1]
    assert approvers.sees(approvers.order()) is Cause.BAD_SIGNATURE
    one.signers["flights"] = kept[1:]
    assert isinstance(approvers.sees(approvers.order()), Believed)


def test_expired_approval_installs_nothing(approvers: World) -> None:
    approvers.targets.delegated["flights"].expires = NOW - timedelta(seconds=1)
    assert approvers.sees(approvers.order()) is Cause.EXPIRED


def test_rollback_of_an_approvers_list(approvers: World) -> None:
    one = approvers.targets
    assert isinstance(approvers.sees(approvers.order()), Believed)
    assert isinstance(approvers.sees(approvers.order()), Believed)
    signed = approvers.order()
    one.delegated["flights"].version = 1
    files = one.cover("flights", one.delegated["flights"]) | one.freshen()
    assert approvers.sees(approvers.with_files(signed, "targets", files)) is Cause.DOWNGRADE


def test_mix_and_match_of_an_approvers_list(approvers: World) -> None:
    one, signed = approvers.targets, approvers.order()
    listed = one.delegated["flights"]
    listed.expires += timedelta(seconds=1)
    files = {f"{listed.version}.flights.json": one.sign("flights", listed)}
    assert approvers.sees(approvers.with_files(signed, "targets", files)) is Cause.MIX_AND_MATCH


def test_approvers_list_that_is_not_in_the_message_is_named(approvers: World) -> None:
    signed = approvers.order()
    files = {name: text for name, text in signed.targets.items() if not name.endswith(".flights.json")}
    assert approvers.sees(msgspec.structs.replace(signed, targets=files)) is Cause.MISSING


def test_a_maze_of_delegations_ends(approvers: World) -> None:
    del approvers.targets.delegated["flights"].targets[DELEGATED]
    for number in range(client.MAX_DELEGATIONS + 8):
        approvers.targets.delegate(f"maze-{number}", ["models/*/*"])
    last = approvers.targets.delegated[f"maze-{number}"]
    last.targets[DELEGATED] = target(DELEGATED, GOOD, 700, model="flight-delay", version="v1")
    assert approvers.sees(approvers.order()) is Cause.NOT_APPROVED
