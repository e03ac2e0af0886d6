"""Changes signed by keys kept elsewhere: by file, one signature after another, and what is refused on the way."""

import json
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from landreeve.trust.anchor import install
from landreeve.trust.client import MAX_TARGETS_BYTES
from landreeve.trust.document import Component, document_text, target_name
from landreeve.trust.verdict import Believed, Cause, Rejected
from landreeve.trust.verify import DesiredVerifier
from landreeve.wire.messages import Desired, DesiredModel, SignedDesired
from landreeve_hub.commands.root import build
from landreeve_hub.incidents.incidents import Incidents, listed
from landreeve_hub.signing import alarms, changes, keys, request
from landreeve_hub.signing.approvers import public_half
from landreeve_hub.signing.chain import sign_freshness
from landreeve_hub.signing.copies import place
from landreeve_hub.signing.desk import KeyDesk
from landreeve_hub.signing.director import Director
from landreeve_hub.signing.drill import drill
from landreeve_hub.signing.edits import AddTarget
from landreeve_hub.signing.errors import BadRequestError, KeyMissingError, RefusedRequestError, SigningError
from landreeve_hub.signing.keyfolder import KeyFolder, make_key
from landreeve_hub.signing.lists import TOP
from landreeve_hub.signing.locked import VARIABLE, from_pem, to_pem
from landreeve_hub.signing.roots import (
    DIRECTOR,
    REPOSITORIES,
    TARGETS,
    newest_root,
    newest_root_text,
    root_versions,
    write_root,
)
from landreeve_hub.signing.targets import TargetsRepository
from landreeve_hub.store.database import Store
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata
from typer.testing import CliRunner

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD, BETTER = "a" * 64, "b" * 64


class Office:
    """A hub whose root keys 2 and 3 and approvers' key are in a safe, and a device that trusts its first roots."""

    def __init__(self, folder: Path) -> None:
        self.state, self.safe, self.now = folder / "hub", folder / "safe", NOW
        keys.init(self.state, NOW)
        self.safe.mkdir()
        self.trust = folder / "trust"
        install(self.trust, {name: newest_root_text(self.state, name) for name in REPOSITORIES}, NOW)
        self.generation = 0
        self.open()

    def open(self) -> None:
        self.targets = TargetsRepository(self.state)
        self.desk = KeyDesk(self.state, self.targets, lambda: self.now)

    def put_away(self, *names: str) -> None:
        for name in names:
            (self.state / "keys" / f"{name}.pem").rename(self.safe / f"{name}.pem")

    def key(self, name: str) -> CryptoSigner:
        return from_pem((self.safe / f"{name}.pem").read_bytes(), "", name)

    def signed(self, change: str, *signers: CryptoSigner) -> bytes:
        """The request as it comes back, signed by each in turn."""
        asked = request.parse(json.dumps(self.desk.export(change)).encode())
        for signer in signers:
            asked, _ = request.sign(asked, signer)
        return request.encode(asked)

    def sees(self, *models: DesiredModel) -> Believed | Cause:
        """What the device says of the next order."""
        self.generation += 1
        desired = Desired(device="d-1", generation=self.generation, issued=self.now.isoformat(), models=models)
        lengths = {model.release: model.manifest_bytes for model in models}
        signed = SignedDesired(
            generation=self.generation,
            document=document_text(desired),
            director=Director(self.state).sign("d-1", desired, lengths, self.now),
            targets=self.targets.metadata({model.release: model.model for model in models}),
        )
        verdict = DesiredVerifier(self.trust, "d-1", NOW).verify(signed, self.now)
        return verdict.cause if isinstance(verdict, Rejected) else verdict

    def approve(self, digest: str = GOOD, model: str = "flight-delay") -> str:
        """Approve a release; the change it waits for."""
        self.targets.add_release(digest, 700, model, "1", "ada", self.now)
        return str(self.desk.changes()[0]["id"]) if self.desk.changes() else ""


def model(digest: str = GOOD, name: str = "flight-delay") -> DesiredModel:
    return DesiredModel(model=name, release=digest, version="1", manifest_bytes=700, rollout="r-1")


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


# --- roots by file ---


def test_partial_signatures_add_up_to_a_new_root_that_devices_follow(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    assert office.desk.rotate("director", "", "ann")["signatures"] == "0 of 2"
    change = office.desk.changes()[0]["id"]
    half = office.desk.take(office.signed(change, office.key("root-3")))
    assert (half["state"], half["signatures"]) == ("awaiting signatures", "1 of 2")
    office.open()  # a restart in between
    whole = office.desk.take(office.signed(change, office.key("root-1")))
    assert (whole["state"], office.desk.changes()) == ("in force", [])
    assert {max(root_versions(office.state, name)) for name in REPOSITORIES} == {2}
    assert isinstance(office.sees(), Believed)


def test_two_files_signed_apart_are_taken_one_after_another(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    change = office.desk.rotate("director", "", "ann")["id"]
    first, second = (office.signed(change, office.key(name)) for name in ("root-1", "root-2"))
    office.desk.take(first)
    assert office.desk.take(second)["state"] == "in force"


def test_request_says_what_changes_computed_from_the_metadata_itself(office: Office) -> None:
    office.put_away("root-2", "root-3")
    asked = request.parse(json.dumps(office.desk.export(office.desk.rotate("targets", "", "ann")["id"])).encode())
    lies = msgspec.structs.replace(asked, what=("nothing",))
    lines = request.summary(lies)
    assert any(line.startswith("targets root 1 → 2: targets gains the key targets (") for line in lines)
    assert any(line.startswith("targets targets 1 → 2: valid until 2027-03-01") for line in lines)


def test_wrong_key_is_refused_where_it_signs_and_where_it_is_brought(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    change = office.desk.rotate("director", "", "ann")["id"]
    stranger = CryptoSigner.generate_ed25519()
    with pytest.raises(RefusedRequestError, match=r"counts for nothing in this request; it wants: root-1 "):
        office.signed(change, stranger)
    forged = office.desk.export(change)
    for item in forged["items"]:
        metadata = Metadata.from_bytes(item["metadata"].encode())
        metadata.sign(stranger, append=True)
        item["metadata"] = metadata.to_bytes().decode()
    with pytest.raises(RefusedRequestError, match="does not count for director root; these do: root-1"):
        office.desk.take(json.dumps(forged).encode())
    assert office.desk.changes()[0]["signatures"] == "0 of 2"


def test_replay_of_a_finished_change_is_refused(office: Office) -> None:
    office.put_away("root-2", "root-3")
    data = office.signed(office.desk.rotate("director", "", "ann")["id"], office.key("root-2"))
    office.desk.take(data)
    with pytest.raises(RefusedRequestError, match=r"is in force since 2026-03-01"):
        office.desk.take(data)


def test_signature_that_is_there_already_is_refused(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    data = office.signed(office.desk.rotate("director", "", "ann")["id"], office.key("root-2"))
    office.desk.take(data)
    with pytest.raises(RefusedRequestError, match="brings no signature"):
        office.desk.take(data)


def test_file_changed_on_its_way_is_refused(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    asked = office.desk.export(office.desk.rotate("director", "", "ann")["id"])
    asked["items"][0]["metadata"] = asked["items"][0]["metadata"].replace('"threshold":2', '"threshold":1')
    bad, _ = request.sign(request.parse(json.dumps(asked).encode()), office.key("root-1"))
    with pytest.raises(RefusedRequestError, match="is not what change change-2 wants to have signed"):
        office.desk.take(request.encode(bad))


def test_signature_of_a_counting_key_over_something_else_is_refused(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    change = office.desk.rotate("director", "", "ann")["id"]
    asked = office.desk.export(change)
    for item in asked["items"]:
        metadata = Metadata.from_bytes(item["metadata"].encode())
        signature = office.key("root-1").sign(b"something else")
        metadata.signatures[signature.keyid] = signature
        item["metadata"] = metadata.to_bytes().decode()
    with pytest.raises(RefusedRequestError, match=r"signature of root-1 \(.*\) does not fit"):
        office.desk.take(json.dumps(asked).encode())


def half_of(signer: CryptoSigner, name: str) -> str:
    return msgspec.json.encode(public_half(signer, name)).decode()


def test_release_approved_while_a_new_targets_key_awaits_the_roots_is_not_lost(office: Office) -> None:
    office.put_away("root-2", "root-3")
    office.desk.rotate("targets", "", "ann")
    office.approve(GOOD)
    (office.safe / "root-2.pem").rename(office.state / "keys" / "root-2.pem")
    office.approve(BETTER)
    assert office.desk.changes() == []
    assert set(office.targets.releases()) == {GOOD, BETTER}
    assert isinstance(office.sees(model()), Believed)


def test_roots_signed_before_an_approval_count_after_it(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    change = office.desk.rotate("targets", "", "ann")["id"]
    signed = office.signed(change, office.key("root-1"), office.key("root-2"))
    office.approve(GOOD)
    assert office.desk.take(signed)["state"] == "in force"
    assert office.targets.releases() == {GOOD: 700}
    assert isinstance(office.sees(model()), Believed)


def test_half_of_a_rotation_is_ended_before_anything_else_is_begun(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make_key(office.safe / "new.pem", "")

    def full(state: Path, repository: str, text: str) -> None:
        if repository == TARGETS:
            raise OSError(28, "No space left on device")
        write_root(state, repository, text)

    with monkeypatch.context() as patched:
        patched.setattr(changes, "write_root", full)
        with pytest.raises(OSError, match="No space"):
            office.desk.rotate("root-1", half_of(new, "root-1"), "ann")
    office.open()
    with pytest.raises(RefusedRequestError, match="half in force already"):
        office.desk.drop(office.desk.changes()[0]["id"])
    assert office.desk.rotate("director", "", "ann")["state"] == "in force"
    assert all(new.public_key.keyid in newest_root(office.state, name).keys for name in REPOSITORIES)
    assert isinstance(office.sees(), Believed)


def test_rotation_that_another_came_after_does_not_come_back_at_the_next_start(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    office.desk.rotate("director", "", "ann")
    last = office.desk.rotate("root-1", half_of(make_key(office.safe / "new.pem", ""), "root-1"), "ann")["id"]
    keys.init(office.state, NOW)
    office.open()
    assert [one["id"] for one in office.desk.changes()] == [last]


def test_key_that_is_in_use_already_replaces_no_other(office: Office) -> None:
    with pytest.raises(RefusedRequestError, match="this is the root-1 key already"):
        office.desk.rotate("root-2", half_of(KeyFolder(office.state).load("root-1"), "root-2"), "ann")
    assert len(newest_root(office.state, DIRECTOR).roles["root"].keyids) == 3


def test_key_under_the_id_of_another_is_refused(office: Office) -> None:
    signer = CryptoSigner.generate_ed25519()
    signer.public_key.keyid = "f" * 64
    with pytest.raises(BadRequestError, match="does not have its own id"):
        office.desk.bring(half_of(signer, "eve"), "eve")


def test_root_in_which_a_known_id_means_another_key_is_not_signed(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    asked = request.parse(json.dumps(office.desk.export(office.desk.renew("root", "ann")["id"])).encode())
    root = json.loads(asked.items[0].metadata)
    known = root["signed"]["roles"]["root"]["keyids"][1]
    root["signed"]["keys"][known]["keyval"] = CryptoSigner.generate_ed25519().public_key.keyval
    forged = msgspec.structs.replace(asked.items[0], metadata=json.dumps(root))
    with pytest.raises(BadRequestError, match="does not have its own id"):
        request.parse(request.encode(msgspec.structs.replace(asked, items=(forged,))))


def test_key_locked_with_an_unknown_passphrase_can_be_replaced(office: Office) -> None:
    path = office.state / "keys" / "root-2.pem"
    path.write_bytes(to_pem(KeyFolder(office.state).load("root-2"), "a passphrase nobody knows"))
    new = half_of(make_key(office.safe / "new.pem", ""), "root-2")
    assert office.desk.rotate("root-2", new, "ann")["state"] == "in force"
    keys.init(office.state, NOW)
    assert isinstance(office.sees(), Believed)


def test_change_made_over_an_older_root_is_refused(office: Office) -> None:
    office.put_away("root-1", "root-2", "root-3")
    old = office.signed(office.desk.rotate("director", "", "ann")["id"], office.key("root-1"))
    for name in ("root-1", "root-2"):  # someone restores keys and changes the roots meanwhile
        shutil.copy(office.safe / f"{name}.pem", office.state / "keys")
    office.desk.renew("root", "ann")
    with pytest.raises(RefusedRequestError, match="no such open change"):
        office.desk.take(old)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"id":"x","made":"","made_by":"","items":[{}]}'])
def test_garbage_is_no_request(office: Office, data: bytes) -> None:
    with pytest.raises(BadRequestError):
        office.desk.take(data)


def test_key_kept_elsewhere_is_replaced_by_one_made_elsewhere(office: Office) -> None:
    office.put_away("targets")
    with pytest.raises(KeyMissingError, match="keys make FILE"):
        office.desk.rotate("targets", "", "ann")
    new = make_key(office.safe / "new.pem", "")
    opened = office.desk.rotate("targets", msgspec.json.encode(public_half(new, "ann")).decode(), "ann")
    assert opened["missing"] == [f"targets ({new.public_key.keyid[:8]})"]
    assert office.desk.take(office.signed(opened["id"], new))["state"] == "in force"
    assert isinstance(office.sees(), Believed)
    office.approve()
    assert office.desk.changes()[0]["missing"] == [f"targets ({new.public_key.keyid[:8]})"]


def test_change_that_was_called_off_leaves_the_key_as_it_was(office: Office) -> None:
    before = KeyFolder(office.state).load("director").public_key.keyid
    office.put_away("root-2", "root-3")
    office.desk.drop(office.desk.rotate("director", "", "ann")["id"])
    keys.init(office.state, NOW)
    assert KeyFolder(office.state).load("director").public_key.keyid == before
    assert root_versions(office.state, DIRECTOR) == (1,)


# --- releases by file ---


def test_release_waits_for_the_approvers_key_in_its_safe(office: Office) -> None:
    office.put_away("targets")
    change = office.approve()
    assert office.sees(model()) is Cause.NOT_APPROVED
    assert office.desk.take(office.signed(change, office.key("targets")))["state"] == "in force"
    assert isinstance(office.sees(model()), Believed)


def test_releases_approved_before_anyone_signed_share_one_signature(office: Office) -> None:
    office.put_away("targets")
    first = office.signed(office.approve(GOOD), office.key("targets"))
    second = office.approve(BETTER)
    with pytest.raises(RefusedRequestError, match="no such open change"):
        office.desk.take(first)
    office.desk.take(office.signed(second, office.key("targets")))
    assert set(office.targets.releases()) == {GOOD, BETTER}


def test_withdrawn_release_is_ordered_no_more_though_its_removal_awaits_a_signature(office: Office) -> None:
    office.approve()
    office.put_away("targets")
    office.targets.remove_release(GOOD, NOW)
    assert office.targets.releases() == {}
    office.desk.take(office.signed(office.desk.changes()[0]["id"], office.key("targets")))
    assert office.sees(model()) is Cause.NOT_APPROVED


def test_list_that_outgrows_devices_is_not_signed(office: Office) -> None:
    director = KeyFolder(office.state).load("director")
    with pytest.raises(SigningError, match="withdraw releases that no site needs"):
        sign_freshness({"targets": (1, b" " * (MAX_TARGETS_BYTES + 1))}, 1, director, NOW)


def test_approval_that_would_outgrow_devices_leaves_nothing_behind(office: Office) -> None:
    long = {"length": 1, "hashes": {"sha256": BETTER}, "custom": {"model": "m", "version": "1", "x": "y" * 400_000}}
    for name in ("one", "two"):
        office.targets.changes.want(AddTarget(TOP, name, long), NOW, "ada")
    with pytest.raises(SigningError, match="withdraw releases that no site needs"):
        office.targets.changes.want(AddTarget(TOP, "three", long), NOW, "ada")
    keys.init(office.state, NOW)  # the next start
    office.open()
    office.approve(GOOD)
    assert set(office.targets.lists.top().targets) == {"one", "two", f"releases/{GOOD}"}


# --- approvers with keys of their own ---


@pytest.fixture
def team(office: Office) -> dict[str, CryptoSigner]:
    """Ada, Bob and Cem, any two of whom approve flights; the targets key is put away afterwards."""
    people = {name: make_key(office.safe / f"{name}.pem", "") for name in ("ada", "bob", "cem")}
    for name, signer in people.items():
        office.desk.bring(msgspec.json.encode(public_half(signer, name)).decode(), name)
        office.desk.admit(name, "ann")
    made = office.desk.require("flights", ("models/flight-*/*",), 2, ("ada", "bob", "cem"), "ann")
    assert made["state"] == "in force"
    office.put_away("targets")
    return people


def test_release_is_approved_by_two_people_one_after_another(office: Office, team: dict[str, CryptoSigner]) -> None:
    change = office.approve()
    assert office.targets.standing(GOOD).startswith("awaiting signatures: 0 of 2 (missing: ada (")
    assert office.desk.take(office.signed(change, team["ada"]))["signatures"] == "1 of 2"
    with pytest.raises(RefusedRequestError, match="brings no signature"):
        office.desk.take(office.signed(change, team["ada"]))
    assert office.desk.take(office.signed(change, team["cem"]))["state"] == "in force"
    assert office.targets.releases() == {GOOD: 700}
    believed = office.sees(model())
    assert isinstance(believed, Believed)
    assert believed.releases == {GOOD: 700}


def test_what_was_begun_to_sign_is_finished_before_the_next(office: Office, team: dict[str, CryptoSigner]) -> None:
    change = office.approve(GOOD)
    office.desk.take(office.signed(change, team["ada"]))
    assert office.approve(BETTER) == change
    office.desk.take(office.signed(change, team["bob"]))
    assert set(office.targets.releases()) == {GOOD}
    following = office.desk.changes()[0]["id"]
    assert following != change
    office.desk.take(office.signed(following, team["bob"], team["cem"]))
    assert set(office.targets.releases()) == {GOOD, BETTER}


def test_models_without_a_role_of_their_own_stay_with_the_targets_key(
    office: Office, team: dict[str, CryptoSigner]
) -> None:
    change = office.approve(GOOD, "till-demand")
    with pytest.raises(RefusedRequestError, match="it wants: targets"):
        office.signed(change, team["ada"], team["bob"])
    office.desk.take(office.signed(change, office.key("targets")))
    assert isinstance(office.sees(model(name="till-demand")), Believed)


def test_hub_with_every_key_it_has_cannot_approve_for_people(office: Office, team: dict[str, CryptoSigner]) -> None:
    office.approve()
    keys.init(office.state, NOW)
    assert office.targets.releases() == {}
    assert target_name(Component.MODEL, "flight-delay", GOOD) not in office.targets.lists.top().targets


def test_dismissed_approver_leaves_the_role(office: Office, team: dict[str, CryptoSigner]) -> None:
    shutil.copy(office.safe / "targets.pem", office.state / "keys")
    gone = office.desk.dismiss("ada", "ann")
    assert [one["state"] for one in gone["changes"]] == ["in force"]
    change = office.approve()
    with pytest.raises(RefusedRequestError, match="counts for nothing"):
        office.signed(change, team["ada"])
    with pytest.raises(RefusedRequestError, match="needs 2 signatures and would have 1 keys"):
        office.desk.dismiss("bob", "ann")


def test_dismissed_key_brought_again_waits_to_be_admitted_and_says_who_dismissed_it(
    office: Office, team: dict[str, CryptoSigner]
) -> None:
    shutil.copy(office.safe / "targets.pem", office.state / "keys")
    office.desk.dismiss("ada", "ann")
    again = office.desk.bring(half_of(team["ada"], "ada"), "ada")
    assert (again["state"], again["judged_by"]) == ("brought", "ann")
    with pytest.raises(RefusedRequestError, match="the key of ada is brought: admit it first"):
        office.desk.require("more", ("models/more-*/*",), 1, ("ada",), "ann")
    assert office.desk.admit("ada", "bea")["state"] == "admitted"
    assert office.desk.bring(half_of(team["ada"], "ada"), "ada")["state"] == "admitted"


def test_release_that_one_has_signed_goes_on_when_the_role_changes(
    office: Office, team: dict[str, CryptoSigner]
) -> None:
    change = office.approve()
    office.desk.take(office.signed(change, team["ada"]))
    shutil.copy(office.safe / "targets.pem", office.state / "keys")
    dan = make_key(office.safe / "dan.pem", "")
    office.desk.bring(half_of(dan, "dan"), "dan")
    office.desk.admit("dan", "ann")
    office.desk.require("flights", ("models/flight-*/*",), 2, ("bob", "cem", "dan"), "ann")
    assert office.desk.take(office.signed(change, dan))["signatures"] == "1 of 2"
    assert office.desk.take(office.signed(change, team["bob"]))["state"] == "in force"
    assert isinstance(office.sees(model()), Believed)


def test_who_may_bring_and_admit_a_key(office: Office) -> None:
    half = msgspec.json.encode(public_half(make_key(office.safe / "ada.pem", ""), "ada")).decode()
    with pytest.raises(RefusedRequestError, match="this is the key of ada; bob can bring only their own"):
        office.desk.bring(half, "bob")
    with pytest.raises(BadRequestError, match="the proof does not fit"):
        office.desk.bring(half.replace('"person":"ada"', '"person":"eve"'), "eve")
    brought = office.desk.bring(half, "ada")
    with pytest.raises(RefusedRequestError, match="cannot also admit it"):
        office.desk.admit(brought["keyid"], "ada")
    with pytest.raises(RefusedRequestError, match="the key of ada is brought: admit it first"):
        office.desk.require("flights", ("models/flight-*/*",), 1, ("ada",), "ann")
    office.desk.admit(brought["keyid"][:8], "ann")
    with pytest.raises(RefusedRequestError, match="2 signatures of different people are wanted, 1 have"):
        office.desk.require("flights", ("models/flight-*/*",), 2, (), "ann")
    with pytest.raises(SigningError, match="write paths as"):
        office.desk.require("flights", ("*",), 1, (), "ann")
    with pytest.raises(SigningError, match="is a name of TUF's own roles"):
        office.desk.require("targets", ("models/*/*",), 1, (), "ann")


# --- keys at rest, status, drill ---


def test_locked_key_opens_with_its_passphrase_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = CryptoSigner.generate_ed25519()
    pem = to_pem(signer, "horse battery")
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert from_pem(pem, "horse battery", "x").public_key == signer.public_key
    with pytest.raises(KeyMissingError, match="is the passphrase right"):
        from_pem(pem, "horse", "x")
    with pytest.raises(KeyMissingError, match="is locked: set LANDREEVE_HUB_KEY_PASSPHRASE"):
        from_pem(pem, "", "x")
    keys.init(tmp_path, NOW)
    file = tmp_path / "keys" / "targets.pem"
    file.write_bytes(to_pem(KeyFolder(tmp_path).load("targets"), "horse battery"))
    assert not TargetsRepository(tmp_path).add_release(GOOD, 700, "flight-delay", "1", "ada", NOW).in_force
    monkeypatch.setenv(VARIABLE, "horse battery")
    assert TargetsRepository(tmp_path).add_release(GOOD, 700, "flight-delay", "1", "ada", NOW).in_force
    make_key(tmp_path / "new.pem")
    assert b"ENCRYPTED" in (tmp_path / "new.pem").read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_openssl_reads_a_locked_key() -> None:
    pem = to_pem(CryptoSigner.generate_ed25519(), "horse battery")
    command = ["openssl", "pkey", "-passin", "pass:horse battery", "-noout", "-text"]
    assert b"ED25519" in subprocess.run(command, input=pem, capture_output=True, check=True).stdout


def test_keys_are_found_among_the_services_credentials(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.put_away("director", "targets")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(office.safe))
    assert KeyFolder(office.state).where("director") == "credentials"
    assert office.approve() == ""
    assert office.targets.releases() == {GOOD: 700}


def test_status_nags_until_two_root_keys_are_gone_and_alarms_at_half_life(office: Office) -> None:
    assert office.desk.status()["advice"][0].startswith("root-2 and root-3 are still on this machine")
    office.put_away("root-2", "root-3")
    report = office.desk.status()
    assert report["advice"] == []
    root = report["roles"][0]
    assert (root["role"], root["version"], root["threshold"]) == ("root", 1, 2)
    assert [one.split(": ")[1] for one in root["keys"]] == ["here", "elsewhere", "elsewhere"]
    office.now = NOW + timedelta(days=183)
    advice = office.desk.status()["advice"]
    assert any(line.startswith("targets targets expires in 182 days: landreeve-hub keys renew") for line in advice)
    office.desk.renew("targets", "ann")
    office.now = NOW + timedelta(days=366)
    alarms = {view["repository"]: view["alarm"] for view in office.desk.status()["roles"] if view["role"] == "root"}
    assert alarms == {"director": "sign anew", "targets": "sign anew"}


def test_what_a_clock_ahead_has_signed_is_signed_anew(office: Office) -> None:
    ahead = NOW + timedelta(days=3000)
    office.targets.refresh(ahead)
    assert office.targets.lists.timestamp().expires > ahead
    assert office.targets.refresh(NOW)
    assert office.targets.lists.timestamp().expires == NOW + timedelta(days=14)
    assert office.targets.lists.top().expires == NOW + timedelta(days=365)
    assert isinstance(office.sees(), Believed)


@pytest.mark.parametrize("away", [(), ("root-2", "root-3")])
def test_drill_goes_well_and_changes_nothing(office: Office, away: tuple[str, ...]) -> None:
    keys.rotate(office.state, "director", NOW)
    office.put_away(*away)
    before = {path: path.read_bytes() for path in office.state.rglob("*") if path.is_file()}
    steps = drill(office.state, NOW)
    assert [step.step for step in steps if not step.ok] == []
    assert len(steps) == 6
    assert ("stand-ins" in steps[1].seen) is bool(away)
    assert {path: path.read_bytes() for path in office.state.rglob("*") if path.is_file()} == before


def test_keys_that_a_killed_drill_has_copied_are_gone_at_the_next_start(office: Office) -> None:
    left = office.state / "drill-killed" / "hub" / "keys"
    left.mkdir(parents=True)
    shutil.copy(office.state / "keys" / "root-2.pem", left)
    with place(office.state) as under_way:
        keys.init(office.state, NOW)
        assert under_way.is_dir()
    assert list(office.state.glob("drill-*")) == []


def test_drill_sees_a_chain_of_roots_that_boxes_cannot_follow(office: Office) -> None:
    keys.rotate(office.state, "director", NOW)
    keys.rotate(office.state, "director", NOW)
    (office.state / "metadata" / DIRECTOR / "2.root.json").write_text(newest_root_text(office.state, DIRECTOR))
    first = drill(office.state, NOW)[0]
    assert not first.ok
    assert "would refuse" in first.seen


def test_names_of_keys_stand_in_the_metadata(office: Office) -> None:
    root = newest_root(office.state, DIRECTOR)
    assert {request.key_name(key).split()[0] for key in root.keys.values()} == {
        "root-1",
        "root-2",
        "root-3",
        "director",
    }


@pytest.mark.parametrize(
    ("name", "step"),
    [("director", 8), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("director", "targets", "root-1"))],
)
def test_kill_at_any_touch_of_a_rotation_is_made_good_by_the_next_start(name: str, step: int) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        keys.init(Path(folder) / "hub", NOW)
        script = Path(__file__).with_name("keys_child.py")
        done = subprocess.run(
            [sys.executable, script, folder, name, str(step)], capture_output=True, text=True, check=True
        )
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tried) > 40 // step
    assert [one["code"] for one in tried] == [-9] * (len(tried) - 1) + [0]
    wanted = {"same": True, "named": True, "waiting": False, "follow": True}
    assert [one for one in tried if {**one, **wanted} != one] == []


def test_signing_by_file_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the hub's machine, on another without a hub, and back."""
    monkeypatch.setenv("COLUMNS", "200")
    run = CliRunner()
    state, away = tmp_path / "hub", tmp_path / "away"
    away.mkdir()
    app = build()
    made = run.invoke(app, ["keys", "init", "--state", str(state), "-o", "json"])
    assert json.loads(made.stdout)["advice"][0].startswith("root-2 and root-3 are still on this machine")
    for name in ("root-2", "root-3"):
        (state / "keys" / f"{name}.pem").rename(away / f"{name}.pem")
    opened = run.invoke(app, ["keys", "rotate", "director", "--state", str(state), "-o", "json"])
    change = json.loads(opened.stdout)
    assert (change["signatures"], change["subject"]) == ("1 of 2", "root")
    file = str(away / "change.json")
    assert run.invoke(app, ["keys", "export", change["id"], "--out", file, "--state", str(state)]).exit_code == 0
    unsigned = run.invoke(app, ["keys", "sign", file, "--key", str(away / "root-2.pem")], input="n\n")
    assert "director root 1 → 2: targets gains the key director" in unsigned.stderr
    assert "nothing was signed" in unsigned.stderr
    refused = run.invoke(app, ["keys", "import", file, "--state", str(state)])
    assert "brings no signature" in refused.stderr
    assert run.invoke(app, ["keys", "sign", file, "--key", str(away / "root-2.pem"), "--yes"]).exit_code == 0
    taken = run.invoke(app, ["keys", "import", file, "--state", str(state), "-o", "json"])
    assert json.loads(taken.stdout)["state"] == "in force"
    shown = run.invoke(app, ["keys", "show", str(away / "root-3.pem"), "--state", str(state), "-o", "json"])
    assert json.loads(shown.stdout)["names"] == ["root-3"]
    status = json.loads(run.invoke(app, ["keys", "status", "--state", str(state), "-o", "json"]).stdout)
    assert status["advice"] == []


async def test_role_past_half_its_life_is_an_incident_until_it_is_signed_anew(office: Office) -> None:
    store, incidents = Store(office.state / "hub.db"), Incidents()
    try:
        for days, expected in ((10, []), (190, ["open"]), (191, ["open"])):
            office.now = NOW + timedelta(days=days)
            office.targets.refresh(office.now)
            if days == 10:
                office.put_away("targets")
            await alarms.watch(office.desk, store, incidents, office.now)
            assert [one["state"] for one in await store.read(listed)] == expected
        office.desk.take(office.signed(office.desk.changes()[0]["id"], office.key("targets")))
        await alarms.watch(office.desk, store, incidents, office.now)
        (incident,) = await store.read(listed)
        assert (incident["state"], incident["kind"]) == ("closed", "keys_expiring")
    finally:
        store.close()
