"""The pair in use is the old one or the new one, wherever a renewal is cut off."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from landreeve.trust.certs import Described, describe, parse
from landreeve_agent.link.keyring import Keyring, new_key, write_key
from landreeve_agent.link.renewal import due_at, roll_due_at

NOW = datetime.now(UTC).replace(microsecond=0)
# Ends itself, as a kill would, at the n-th change it makes to the disk.
CHILD = """
import os, sys
from pathlib import Path
from landreeve_agent.link.keyring import Keyring
left = int(sys.argv[2])
def count(event, arguments):
    global left
    changes = {"os.rename", "os.mkdir", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree", "tempfile.mkstemp"}
    if event in changes:
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(count)
Keyring(Path(sys.argv[1])).promote()
"""


def certificate(key: ec.EllipticCurvePrivateKey, name: str = "d-1", days: float = 90) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(NOW - timedelta(minutes=10)).not_valid_after(NOW + timedelta(days=days))
    return builder.sign(key, hashes.SHA256())


def pem(one: x509.Certificate) -> str:
    return one.public_bytes(Encoding.PEM).decode()


AUTHORITIES = tuple(certificate(new_key(), name) for name in ("former", "next"))


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    """A box that has joined and never renewed."""
    ring = Keyring(tmp_path / "keys")
    ring.folder.mkdir()
    key = new_key()
    write_key(ring.folder / "device.key", key)
    (ring.folder / "device.crt").write_text(pem(certificate(key)))
    (ring.folder / "ca.crt").write_text(pem(AUTHORITIES[0]))
    return ring


def stage(ring: Keyring) -> str:
    """The serial number of a next pair."""
    made = certificate(ring.prepare())
    ring.complete(pem(made), AUTHORITIES)
    return format(made.serial_number, "x")


def assert_whole(ring: Keyring) -> str:
    """Key, certificate and trust belong together; the serial number in use."""
    key, used = ring.key(), parse(ring.certificate)
    assert used.public_key() == key.public_key()
    assert ring.trusted()
    return format(used.serial_number, "x")


def test_promotion_killed_at_any_change_leaves_one_whole_pair(ring: Keyring) -> None:
    former = assert_whole(ring)
    fresh, seen = stage(ring), set()
    for changes in range(60):
        done = subprocess.run([sys.executable, "-c", CHILD, str(ring.folder), str(changes)], check=False)
        seen.add(assert_whole(ring))
        if done.returncode == 0:
            break
        assert done.returncode == 9
        if not ring.is_ready(NOW) and assert_whole(ring) == former:
            fresh = stage(ring)  # the next look asks for another certificate
        if assert_whole(ring) != former:
            former, fresh = assert_whole(ring), stage(ring)
    assert done.returncode == 0
    assert assert_whole(ring) == fresh
    assert len(seen) > 1
    ring.tidy()
    assert len(list(ring.folder.glob("pair-*"))) == 1
    assert not ring.next.exists()


def test_key_of_an_attempt_is_used_again_and_a_damaged_one_is_not(ring: Keyring) -> None:
    first = ring.prepare().private_numbers()
    assert ring.prepare().private_numbers() == first
    (ring.next / "device.key").write_text("-----BEGIN")
    assert ring.prepare().private_numbers() != first


def test_half_a_next_pair_is_not_ready(ring: Keyring) -> None:
    assert not ring.is_ready(NOW)
    ring.prepare()
    assert not ring.is_ready(NOW)
    other = certificate(new_key())
    ring.complete(pem(other), AUTHORITIES)
    assert not ring.is_ready(NOW)
    ring.complete(pem(certificate(ring.prepare())), AUTHORITIES)
    assert ring.is_ready(NOW)
    assert not ring.is_ready(NOW + timedelta(days=91))


def test_files_of_every_pair_are_the_owners_alone(ring: Keyring) -> None:
    stage(ring)
    ring.promote()
    assert {(ring.folder / name).stat().st_mode & 0o777 for name in ("device.key", "device.crt", "ca.crt")} == {0o600}


def test_wanted_authorities_are_added_at_once_and_the_former_is_surplus(ring: Keyring) -> None:
    both = tuple(pem(one) for one in AUTHORITIES)
    assert ring.want(both)
    assert not ring.want(both)
    assert len(ring.trusted()) == 2
    assert not ring.is_surplus()
    assert ring.want(both[1:])
    assert len(ring.trusted()) == 2  # dropped only once the broker is reached without it
    assert ring.is_surplus()
    ring.copy(ring.wanted())
    ring.promote()
    assert [describe(pem(one).encode()).common_name for one in ring.trusted()] == ["next"]
    assert assert_whole(ring)


@given(serial=st.integers(1, 2**160), days=st.floats(0.01, 800))
def test_renewal_is_due_when_a_third_is_left_and_never_after_a_quarter(serial: int, days: float) -> None:
    life = timedelta(days=days)
    one = Described("d-1", "ca", format(serial, "x"), NOW, NOW + life, (), "")
    left = (one.not_after - due_at(one)) / life
    assert 0.25 < left <= 1 / 3 + 1e-9
    assert 5.0 <= roll_due_at(5.0, one.serial, 60.0) < 65.0


def test_keys_of_a_fleet_do_not_come_back_at_one_moment() -> None:
    end = NOW + timedelta(days=90)
    dues = {due_at(Described("d", "ca", format(serial, "x"), NOW, end, (), "")) for serial in range(100)}
    assert max(dues) - min(dues) > timedelta(hours=12)
