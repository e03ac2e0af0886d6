"""The fleet's keys: made once, replaceable, and never remade when one was moved away."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from landreeve_hub.signing import keys
from landreeve_hub.signing.errors import KeyMissingError, SigningError
from landreeve_hub.signing.keyfolder import ALL_KEYS, KeyFolder
from landreeve_hub.signing.roots import DIRECTOR, TARGETS, newest_root, newest_root_text, root_versions
from landreeve_hub.signing.targets import TargetsRepository
from tuf.api.metadata import Metadata, Targets, Timestamp

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
GOOD, BETTER = "a" * 64, "b" * 64


@pytest.fixture
def state(tmp_path: Path) -> Path:
    keys.init(tmp_path, NOW)
    return tmp_path


def listed(repository: TargetsRepository) -> Targets:
    text = next(text for name, text in repository.metadata().items() if name.endswith(".targets.json"))
    return Metadata[Targets].from_bytes(text.encode()).signed


def timestamp(repository: TargetsRepository) -> Timestamp:
    return Metadata[Timestamp].from_bytes(repository.metadata()["timestamp.json"].encode()).signed


def test_second_init_changes_nothing(state: Path) -> None:
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    keys.init(state, NOW + timedelta(days=1))
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before


def test_keys_are_the_owners_alone(state: Path) -> None:
    files = [state / "keys" / f"{name}.pem" for name in ALL_KEYS]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((state / "keys").stat().st_mode) == 0o700


def test_two_of_three_root_keys_are_needed(state: Path) -> None:
    for repository in (DIRECTOR, TARGETS):
        role = newest_root(state, repository).roles["root"]
        assert (role.threshold, len(role.keyids)) == (2, 3)


def test_online_key_signs_no_release(state: Path) -> None:
    online = KeyFolder(state).load("director").public_key.keyid
    assert online not in newest_root(state, TARGETS).roles["targets"].keyids
    assert newest_root(state, DIRECTOR).roles["targets"].keyids == [online]


def test_root_keys_moved_away_are_not_remade(state: Path) -> None:
    before = newest_root_text(state, DIRECTOR)
    for name in ("root-2", "root-3"):
        (state / "keys" / f"{name}.pem").unlink()
    keys.init(state, NOW)
    assert not (state / "keys" / "root-2.pem").exists()
    assert newest_root_text(state, DIRECTOR) == before


def test_rotation_without_two_root_keys_changes_no_root(state: Path) -> None:
    for name in ("root-2", "root-3"):
        (state / "keys" / f"{name}.pem").unlink()
    standing = keys.rotate(state, "director", NOW)
    assert standing.sentence.startswith("awaiting signatures: 1 of 2 (missing: root-2")
    assert root_versions(state, DIRECTOR) == root_versions(state, TARGETS) == (1,)


def test_rotation_works_with_one_root_key_off_site(state: Path) -> None:
    (state / "keys" / "root-3.pem").unlink()
    keys.rotate(state, "director", NOW)
    assert root_versions(state, DIRECTOR) == (1, 2)


def test_rotation_cut_short_by_a_crash_is_ended_at_the_next_start(state: Path) -> None:
    old = KeyFolder(state).load("director").public_key.keyid
    new = KeyFolder(state).make_next("director").public_key.keyid
    keys.init(state, NOW)
    assert KeyFolder(state).load("director").public_key.keyid == new
    assert old not in newest_root(state, TARGETS).keys
    assert KeyFolder(state).next("director") is None


def test_release_is_listed_once_with_who_approved_it(state: Path) -> None:
    repository = TargetsRepository(state)
    repository.add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)
    version = listed(repository).version
    repository.add_release(GOOD, 700, "flight-delay", "1", "bob", NOW)
    assert listed(repository).version == version
    assert repository.releases() == {GOOD: 700}
    assert listed(repository).targets[f"releases/{GOOD}"].custom["approved_by"] == "ada"


def test_release_never_changes_its_facts(state: Path) -> None:
    repository = TargetsRepository(state)
    repository.add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)
    with pytest.raises(SigningError, match="already signed as flight-delay 1 of 700 bytes"):
        repository.add_release(GOOD, 701, "flight-delay", "1", "ada", NOW)


def test_versions_only_rise_and_former_states_are_forgotten(state: Path) -> None:
    repository = TargetsRepository(state)
    seen = [listed(repository).version]
    repository.add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)
    seen.append(listed(repository).version)
    repository.remove_release(GOOD, NOW)
    seen.append(listed(repository).version)
    repository.remove_release(BETTER, NOW)
    assert seen == [1, 2, 3]
    assert TargetsRepository(state).releases() == {}
    assert len(list((state / "metadata" / TARGETS).glob("*.targets.json"))) == 1


def test_crash_before_the_timestamp_leaves_the_former_state(state: Path) -> None:
    repository = TargetsRepository(state)
    folder = state / "metadata" / TARGETS
    (folder / "2.targets.json").write_text("half writ")
    (folder / "2.snapshot.json").write_text("")
    assert repository.releases() == {}
    repository.add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)
    assert repository.releases() == {GOOD: 700}


def test_freshness_is_renewed_at_half_its_life_without_the_approvers_key(state: Path) -> None:
    repository = TargetsRepository(state)
    (state / "keys" / "targets.pem").unlink()
    assert not repository.refresh(NOW + timedelta(days=6))
    assert repository.refresh(NOW + timedelta(days=8))
    assert timestamp(repository).version == 2
    assert timestamp(repository).expires == NOW + timedelta(days=22)
    assert listed(repository).version == 1


def test_approving_without_the_approvers_key_waits_for_its_signature(state: Path) -> None:
    (state / "keys" / "targets.pem").unlink()
    repository = TargetsRepository(state)
    standing = repository.add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)
    assert (standing.in_force, standing.have, standing.need) == (False, 0, 1)
    assert repository.releases() == {}
    assert repository.standing(GOOD).startswith("awaiting signatures: 0 of 1 (missing: targets (")


def test_key_that_is_wanted_and_not_here_says_where_it_belongs(state: Path) -> None:
    (state / "keys" / "director.pem").unlink()
    with pytest.raises(KeyMissingError, match=r"director key is not on this machine: put it at .*director\.pem"):
        TargetsRepository(state).add_release(GOOD, 700, "flight-delay", "1", "ada", NOW)


def test_repository_before_init_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match="landreeve-hub init"):
        TargetsRepository(tmp_path).releases()
