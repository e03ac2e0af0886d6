"""What a broker, a thief of online keys, or a wrong clock can try against a device; named after the attack."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from landreeve.trust.anchor import BadRootError, install
from landreeve.trust.document import document_text, release_name
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.messages import Desired, DesiredModel, SignedDesired
from landreeve_hub.signing import keys
from landreeve_hub.signing.chain import sign_freshness, sign_targets
from landreeve_hub.signing.director import Director, timestamp_version
from landreeve_hub.signing.keyfolder import KeyFolder
from landreeve_hub.signing.roots import DIRECTOR, TARGETS, newest_root_text
from landreeve_hub.signing.targets import TargetsRepository
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Targets

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BUILT = datetime(2026, 1, 1, tzinfo=UTC)
GOOD, BETTER = "a" * 64, "b" * 64


def model(digest: str = GOOD, length: int = 700, version: str = "1") -> DesiredModel:
    return DesiredModel(model="flight-delay", release=digest, version=version, manifest_bytes=length, rollout="r-1")


class Fleet:
    """A hub's signing on disk and devices that verify, with a clock the test sets."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.now = NOW
        keys.init(state, NOW)
        self.targets = TargetsRepository(state)
        self.director = Director(state)
        self.targets.add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)
        self.targets.add_release(BETTER, 800, "flight-delay", "2", "ada", NOW)

    def order(
        self, generation: int, *models: DesiredModel, device: str = "d-1", lengths: dict[str, int] | None = None
    ) -> SignedDesired:
        desired = Desired(device=device, generation=generation, issued=self.now.isoformat(), models=models)
        known = {GOOD: 700, BETTER: 800} if lengths is None else lengths
        director = self.director.sign(device, desired, known, self.now)
        return SignedDesired(
            generation=generation, document=document_text(desired), director=director, targets=self.targets.metadata()
        )

    def roots(self) -> dict[str, str]:
        return {name: newest_root_text(self.state, name) for name in (DIRECTOR, TARGETS)}


class Device:
    def __init__(self, trust_dir: Path, fleet: Fleet, name: str = "d-1") -> None:
        self.trust_dir = trust_dir
        self._fleet = fleet
        self._name = name
        install(trust_dir, fleet.roots(), NOW - timedelta(days=1))

    def sees(self, signed: SignedDesired, now: datetime | None = None) -> Believed | Cause:
        """A new process each time: what protects must be on disk."""
        verdict = DesiredVerifier(self.trust_dir, self._name, BUILT).verify(signed, now or self._fleet.now)
        if isinstance(verdict, Rejected):
            assert verdict.sentence.endswith(".")
            return verdict.cause
        return verdict


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "hub")


@pytest.fixture
def device(tmp_path: Path, fleet: Fleet) -> Iterator[Device]:
    device = Device(tmp_path / "box" / "trust", fleet)
    yield device
    leftovers = [
        path for path in device.trust_dir.glob("caches/*") if not (device.trust_dir / "current").samefile(path)
    ]
    assert leftovers == []


def test_signed_order_is_believed_with_the_agreed_length(fleet: Fleet, device: Device) -> None:
    signed = fleet.order(1, model())
    believed = device.sees(signed)
    assert believed == Believed(msgspec.json.decode(signed.document, type=Desired), {GOOD: 700}, 1)


def test_same_document_again_is_believed_again(fleet: Fleet, device: Device) -> None:
    signed = fleet.order(1, model())
    assert device.sees(signed) == device.sees(signed)


def test_rollback_is_a_newer_order_of_an_older_release(fleet: Fleet, device: Device) -> None:
    assert isinstance(device.sees(fleet.order(1, model(BETTER, 800, "2"))), Believed)
    assert isinstance(device.sees(fleet.order(2, model())), Believed)


def test_replay_of_an_older_document_is_refused(fleet: Fleet, device: Device) -> None:
    old, new = fleet.order(1, model()), fleet.order(2, model(BETTER, 800, "2"))
    assert isinstance(device.sees(new), Believed)
    assert device.sees(old) is Cause.DOWNGRADE


def test_downgrade_of_the_approvers_list_is_refused(fleet: Fleet, device: Device) -> None:
    before = fleet.targets.metadata()
    fleet.targets.remove_release(GOOD, NOW)
    assert isinstance(device.sees(fleet.order(1, model(BETTER, 800, "2"))), Believed)
    assert device.sees(msgspec.structs.replace(fleet.order(2, model()), targets=before)) is Cause.DOWNGRADE


def test_mix_of_two_states_is_refused(fleet: Fleet, device: Device) -> None:
    old, new = fleet.order(1, model()), fleet.order(2, model(BETTER, 800, "2"))
    mixed = {**new.director, "2.targets.json": old.director["1.targets.json"]}
    assert device.sees(msgspec.structs.replace(new, director=mixed)) is Cause.MIX_AND_MATCH


def test_document_of_another_order_under_good_metadata_is_refused(fleet: Fleet, device: Device) -> None:
    old, new = fleet.order(1, model()), fleet.order(2, model(BETTER, 800, "2"))
    assert device.sees(msgspec.structs.replace(new, document=old.document)) is Cause.TAMPERED


def test_tampered_document_is_refused(fleet: Fleet, device: Device) -> None:
    signed = fleet.order(1, model())
    forged = signed.document.replace('"rollout":"r-1"', '"rollout":"r-2"')
    assert forged != signed.document
    assert device.sees(msgspec.structs.replace(signed, document=forged)) is Cause.TAMPERED


def test_document_of_another_device_is_refused_and_locks_nothing_out(fleet: Fleet, device: Device) -> None:
    foreign = fleet.order(50, model(), device="d-2")
    assert device.sees(foreign) is Cause.OTHER_DEVICE
    assert isinstance(device.sees(fleet.order(2, model())), Believed)


def test_envelope_with_another_generation_is_refused(fleet: Fleet, device: Device) -> None:
    signed = msgspec.structs.replace(fleet.order(3, model()), generation=9)
    assert device.sees(signed) is Cause.WRONG_GENERATION


def test_director_without_targets_installs_nothing(fleet: Fleet, device: Device) -> None:
    unapproved = "c" * 64
    signed = fleet.order(1, model(unapproved), lengths={unapproved: 700})
    assert device.sees(signed) is Cause.NOT_APPROVED


def test_withdrawn_release_is_not_installed(fleet: Fleet, device: Device) -> None:
    fleet.targets.remove_release(GOOD, NOW)
    assert device.sees(fleet.order(1, model())) is Cause.NOT_APPROVED


def test_targets_without_director_installs_nothing(fleet: Fleet, device: Device) -> None:
    """The approvers signed the release; the director signed a document naming it, but not the release."""
    signed = fleet.order(1, model())
    director = Metadata[Targets].from_bytes(signed.director["1.targets.json"].encode()).signed
    del director.targets[release_name(GOOD)]
    assert device.sees(_resigned(fleet, signed, director)) is Cause.NOT_ORDERED


def test_length_disagreement_is_refused(fleet: Fleet, device: Device) -> None:
    assert device.sees(fleet.order(1, model(), lengths={GOOD: 701})) is Cause.DISAGREEMENT
    assert device.sees(fleet.order(2, model(length=701))) is Cause.DISAGREEMENT


def test_release_approved_for_another_model_is_refused(fleet: Fleet, device: Device) -> None:
    fleet.targets.add_release("d" * 64, 700, "till-demand", "1", "ada", NOW)
    assert device.sees(fleet.order(1, model("d" * 64), lengths={"d" * 64: 700})) is Cause.DISAGREEMENT


def test_thief_of_every_online_key_cannot_add_a_release(fleet: Fleet, device: Device) -> None:
    evil = "e" * 64
    signed = fleet.order(1, model(evil), lengths={evil: 700})
    online = KeyFolder(fleet.state).load("director")
    listed = Metadata[Targets].from_bytes(_named(signed.targets, "targets").encode()).signed
    listed.targets[release_name(evil)] = (
        Metadata[Targets].from_bytes(signed.director["1.targets.json"].encode()).signed.targets[release_name(evil)]
    )
    listed.version += 1
    data = sign_targets(listed, online)
    forged = {f"{listed.version}.targets.json": data.decode()} | sign_freshness(
        {"targets": (listed.version, data)}, 99, online, NOW
    )
    assert device.sees(msgspec.structs.replace(signed, targets=forged)) is Cause.BAD_SIGNATURE


def test_signature_of_a_stranger_is_refused(fleet: Fleet, device: Device, tmp_path: Path) -> None:
    stranger = Fleet(tmp_path / "stranger")
    assert device.sees(stranger.order(1, model())) is Cause.BAD_SIGNATURE


def test_expired_metadata_installs_nothing(fleet: Fleet, device: Device) -> None:
    signed = fleet.order(1, model())
    assert device.sees(signed, NOW + timedelta(days=15)) is Cause.EXPIRED
    fleet.now = NOW + timedelta(days=15)
    fleet.targets.refresh(fleet.now)
    assert isinstance(device.sees(fleet.order(2, model())), Believed)


def test_frozen_old_metadata_at_1970_is_refused(fleet: Fleet, device: Device) -> None:
    assert device.sees(fleet.order(1, model()), datetime(1970, 1, 1, 0, 5, tzinfo=UTC)) is Cause.CLOCK_BEHIND


def test_clock_slightly_behind_the_floor_judges_expiry_by_the_floor(fleet: Fleet, device: Device) -> None:
    stale = fleet.order(1, model())
    fleet.now = NOW + timedelta(days=14, hours=1)
    fleet.targets.refresh(fleet.now)
    assert isinstance(device.sees(fleet.order(2, model())), Believed)
    assert device.sees(stale, fleet.now - timedelta(hours=2)) in (Cause.EXPIRED, Cause.DOWNGRADE)
    (device.trust_dir / "current").unlink()
    assert device.sees(stale, fleet.now - timedelta(hours=2)) is Cause.EXPIRED
    device.sees(fleet.order(3, model()))


def test_floor_follows_the_hub_and_never_the_own_clock(fleet: Fleet, device: Device) -> None:
    assert isinstance(device.sees(fleet.order(1, model()), NOW + timedelta(days=10)), Believed)
    floor = datetime.fromisoformat(json.loads((device.trust_dir / "floor.json").read_text())["time"])
    assert floor == NOW


def test_signer_from_the_future_cannot_stop_later_installs(fleet: Fleet, device: Device) -> None:
    honest = fleet.now
    fleet.now = NOW + timedelta(days=3000)
    device.sees(fleet.order(1, model()), honest)
    fleet.now = honest
    assert isinstance(device.sees(fleet.order(2, model())), Believed)


def test_damaged_floor_falls_back_to_the_build_time(fleet: Fleet, device: Device) -> None:
    (device.trust_dir / "floor.json").write_text("{")
    assert device.sees(fleet.order(1, model()), BUILT - timedelta(days=2)) is Cause.CLOCK_BEHIND
    assert isinstance(device.sees(fleet.order(1, model())), Believed)


@pytest.mark.parametrize("name", ["director", "targets", "root-1", "root-2"])
def test_rotated_root_is_accepted(fleet: Fleet, device: Device, name: str) -> None:
    assert isinstance(device.sees(fleet.order(1, model())), Believed)
    keys.rotate(fleet.state, name, NOW)
    keys.rotate(fleet.state, name, NOW)
    assert isinstance(device.sees(fleet.order(2, model(BETTER, 800, "2"))), Believed)


def test_old_key_is_worth_nothing_after_its_rotation(fleet: Fleet, device: Device) -> None:
    stolen = KeyFolder(fleet.state).load("director")
    keys.rotate(fleet.state, "director", NOW)
    assert isinstance(device.sees(fleet.order(1, model())), Believed)
    signed = fleet.order(2, model())
    director = Metadata[Targets].from_bytes(signed.director["2.targets.json"].encode()).signed
    assert device.sees(_resigned(fleet, signed, director, stolen)) is Cause.BAD_SIGNATURE


def test_new_root_below_the_threshold_is_refused(fleet: Fleet, device: Device) -> None:
    signed = fleet.order(1, model())
    thief = CryptoSigner.generate_ed25519()
    root = Metadata[Root].from_bytes(newest_root_text(fleet.state, DIRECTOR).encode())
    root.signed.version = 2
    root.signed.add_key(thief.public_key, "timestamp")
    root.signatures.clear()
    root.sign(KeyFolder(fleet.state).load("root-1"))
    root.sign(thief, append=True)
    forged = {**signed.director, "2.root.json": root.to_bytes().decode()}
    assert device.sees(msgspec.structs.replace(signed, director=forged)) is Cause.BAD_SIGNATURE
    assert isinstance(device.sees(signed), Believed)


@pytest.mark.parametrize("missing", ["timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_missing_piece_of_metadata_is_named(fleet: Fleet, device: Device, missing: str) -> None:
    signed = fleet.order(1, model())
    director = {name: text for name, text in signed.director.items() if name != missing}
    verdict = DesiredVerifier(device.trust_dir, "d-1", BUILT).verify(
        msgspec.structs.replace(signed, director=director), NOW
    )
    assert isinstance(verdict, Rejected)
    assert verdict.cause is Cause.MISSING
    assert missing in verdict.sentence


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"signed":{},"signatures":[]}', "\x00"])
@pytest.mark.parametrize("piece", ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"])
def test_garbage_is_refused_without_an_exception(fleet: Fleet, device: Device, piece: str, text: str) -> None:
    signed = fleet.order(1, model())
    verdict = device.sees(msgspec.structs.replace(signed, director={**signed.director, piece: text}))
    assert isinstance(verdict, Cause)
    assert isinstance(device.sees(signed), Believed)


def test_box_that_never_joined_installs_nothing(fleet: Fleet, tmp_path: Path) -> None:
    verdict = DesiredVerifier(tmp_path, "d-1", BUILT).verify(fleet.order(1, model()), NOW)
    assert isinstance(verdict, Rejected)
    assert verdict.cause is Cause.NOT_ENROLLED


def test_root_without_its_own_threshold_is_never_installed(fleet: Fleet, tmp_path: Path) -> None:
    root = Metadata[Root].from_bytes(newest_root_text(fleet.state, DIRECTOR).encode())
    for keyid in list(root.signatures)[1:]:
        del root.signatures[keyid]
    roots = fleet.roots() | {DIRECTOR: root.to_bytes().decode()}
    with pytest.raises(BadRootError, match="director root"):
        install(tmp_path / "trust", roots, NOW)
    assert not (tmp_path / "trust").exists()


def test_crash_during_a_verification_leaves_the_former_cache(fleet: Fleet, device: Device) -> None:
    assert isinstance(device.sees(fleet.order(5, model())), Believed)
    half = device.trust_dir / "caches" / "half"
    (half / "director").mkdir(parents=True)
    (half / "director" / "timestamp.json").write_text("{")
    assert device.sees(fleet.order(4, model())) is Cause.DOWNGRADE
    assert isinstance(device.sees(fleet.order(6, model())), Believed)
    assert not half.exists()


def _resigned(fleet: Fleet, signed: SignedDesired, director: Targets, key: CryptoSigner | None = None) -> SignedDesired:
    signer = key or KeyFolder(fleet.state).load("director")
    data = sign_targets(director, signer)
    version = timestamp_version(signed.director)
    fresh = sign_freshness({"targets": (director.version, data)}, version, signer, NOW)
    files = {**signed.director, f"{director.version}.targets.json": data.decode(), **fresh}
    return msgspec.structs.replace(signed, director=files)


def _named(files: dict[str, str], role: str) -> str:
    return next(text for name, text in files.items() if name.endswith(f".{role}.json"))
