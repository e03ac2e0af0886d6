"""The fleet's authority: certificates that the strictest verifier accepts, kept while they are good."""

import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtensionOID
from landreeve.trust.certs import BadCertificateError, days_left, describe
from landreeve_hub.fleet.authority import Authority, AuthorityError, KeyPair

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "hub state")
    authority.init(NOW)
    return authority


def device(authority: Authority, folder: Path, name: str = "d-abc", now: datetime = NOW) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    pair = KeyPair(folder / f"{name}.key", folder / f"{name}.crt")
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair.certificate.write_text(authority.sign_device(csr.public_bytes(Encoding.PEM).decode(), name, now))
    return pair


def strict(purpose: ssl.Purpose, ca: Path, pair: KeyPair) -> ssl.SSLContext:
    context = ssl.create_default_context(purpose, cafile=str(ca))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> str:
    """The common name the server sees of the client."""
    seen: list[str] = []
    left, right = socket.socketpair()

    def serve() -> None:
        with left, server.wrap_socket(left, server_side=True) as tls:
            peer = tls.getpeercert() or {}
            seen.extend(value for group in peer["subject"] for _, value in group)
            tls.sendall(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    with right, client.wrap_socket(right, server_hostname=host) as tls:
        tls.recv(1)
    thread.join()
    return seen[0]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "hub.example"])
def test_device_and_server_accept_each_other_strictly(authority: Authority, tmp_path: Path, host: str) -> None:
    server = strict(ssl.Purpose.CLIENT_AUTH, authority.ca_path, authority.issue_server("broker", NOW, ["hub.example"]))
    client = strict(ssl.Purpose.SERVER_AUTH, authority.ca_path, device(authority, tmp_path))
    assert shake_hands(server, client, host) == "d-abc"


def test_hub_itself_is_the_client_hub(authority: Authority) -> None:
    server = strict(ssl.Purpose.CLIENT_AUTH, authority.ca_path, authority.issue_server("broker", NOW))
    client = strict(ssl.Purpose.SERVER_AUTH, authority.ca_path, authority.issue_client("hub", NOW))
    assert shake_hands(server, client, "localhost") == "hub"


def test_device_certificate_is_no_server_certificate(authority: Authority, tmp_path: Path) -> None:
    pair = device(authority, tmp_path)
    context = ssl.create_default_context(cafile=str(authority.ca_path))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certificate, pair.key)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    back, forth = ssl.MemoryBIO(), ssl.MemoryBIO()
    served = server.wrap_bio(back, forth, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    back.write(outgoing.read())
    with pytest.raises(ssl.SSLWantReadError):
        served.do_handshake()
    incoming.write(forth.read())
    with pytest.raises(ssl.SSLCertVerificationError):
        client.do_handshake()


@pytest.mark.parametrize("kind", ["ca", "server", "client", "device"])
def test_every_certificate_carries_what_strict_verifiers_ask_for(
    authority: Authority, tmp_path: Path, kind: str
) -> None:
    paths = {
        "ca": authority.ca_path,
        "server": authority.issue_server("https", NOW).certificate,
        "client": authority.issue_client("hub", NOW).certificate,
        "device": device(authority, tmp_path).certificate,
    }
    extensions = x509.load_pem_x509_certificate(paths[kind].read_bytes()).extensions
    assert extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS).critical
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca == (kind == "ca")
    assert extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).critical
    assert extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign == (kind == "ca")
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


def test_private_keys_are_readable_by_their_owner_only(authority: Authority) -> None:
    paths = (authority.ca_path.with_name("ca.key"), authority.issue_server("broker", NOW).key)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_authority_is_made_once(authority: Authority, tmp_path: Path) -> None:
    before = authority.ca_fingerprint
    again = Authority(tmp_path / "hub state")
    again.init(NOW + timedelta(days=400))
    assert again.ca_fingerprint == before


def test_server_certificate_is_renewed_in_its_last_thirty_days(authority: Authority) -> None:
    first = authority.issue_server("broker", NOW).certificate.read_bytes()
    assert authority.issue_server("broker", NOW + timedelta(days=335)).certificate.read_bytes() == first
    renewed = authority.issue_server("broker", NOW + timedelta(days=336)).certificate
    assert renewed.read_bytes() != first
    assert days_left(renewed, NOW + timedelta(days=336)) == pytest.approx(365)


def test_server_certificate_follows_new_names(authority: Authority) -> None:
    first = authority.issue_server("https", NOW).certificate.read_bytes()
    second = authority.issue_server("https", NOW, ["10.0.0.7"]).certificate.read_bytes()
    assert second != first
    assert "10.0.0.7" in describe(second).names


def test_certificate_of_a_former_authority_is_replaced(authority: Authority) -> None:
    pair = authority.issue_server("broker", NOW)
    authority.ca_path.unlink()
    authority.ca_path.with_name("ca.key").unlink()
    authority.init(NOW)
    before = pair.certificate.read_bytes()
    assert authority.issue_server("broker", NOW).certificate.read_bytes() != before


def test_no_certificate_outlives_the_authority(authority: Authority, tmp_path: Path) -> None:
    late = NOW + timedelta(days=3640)
    assert days_left(device(authority, tmp_path, now=late).certificate, late) == pytest.approx(10)


def test_lost_authority_key_is_named_with_what_to_do(authority: Authority) -> None:
    authority.ca_path.with_name("ca.key").unlink()
    with pytest.raises(AuthorityError, match=r"ca\.key.*restore"):
        authority.issue_server("broker", NOW)
    with pytest.raises(AuthorityError):
        authority.init(NOW)


def test_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.crt").write_text("hello")
    with pytest.raises(BadCertificateError, match=r"x\.crt"):
        days_left(tmp_path / "x.crt", NOW)


# A Python that is strict by itself --------------------------------------------------------------------------------

CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
assert context.verify_flags & ssl.VERIFY_X509_STRICT, "this Python is not strict"
context.load_cert_chain(sys.argv[2], sys.argv[3])
with socket.create_connection(("127.0.0.1", int(sys.argv[4]))) as raw:
    with context.wrap_socket(raw, server_hostname="localhost") as tls:
        sys.stdout.write(tls.recv(1).decode())
"""
SERVER = """
import socket, ssl, sys
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT
context.verify_mode = ssl.CERT_REQUIRED
context.load_cert_chain(sys.argv[2], sys.argv[3])
with socket.create_server(("127.0.0.1", 0)) as door:
    print(door.getsockname()[1], flush=True)
    raw, _ = door.accept()
    with raw, context.wrap_socket(raw, server_side=True) as tls:
        tls.sendall(b"x")
        print(dict(one[0] for one in tls.getpeercert()["subject"])["commonName"], flush=True)
"""


def strict_python() -> str:
    """A Python 3.13 or later, where strictness is the default (python/cpython#107361)."""
    if sys.version_info >= (3, 13):
        return sys.executable
    versions = Path(sys.executable).resolve().parents[2]
    candidates = [*(shutil.which(f"python3.{minor}") for minor in (15, 14, 13)), *versions.glob("3.1[3-9]*/bin/python")]
    for found in filter(None, candidates):
        probe = [str(found), "-c", "import sys, ssl; sys.exit(sys.version_info < (3, 13))"]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return str(found)
    pytest.skip("no Python 3.13 or later on this machine")


def test_python_that_is_strict_by_default_speaks_both_ends(authority: Authority, tmp_path: Path) -> None:
    python, server, client = strict_python(), authority.issue_server("broker", NOW), device(authority, tmp_path)
    authority.roll(NOW)  # with two authorities in force too
    fresh = device(authority, tmp_path, "d-new")
    for pair in (client, fresh):
        arguments = [str(authority.trust_path), str(server.certificate), str(server.key)]
        served = subprocess.Popen([python, "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True)
        assert served.stdout is not None
        with served, served.stdout:
            port = served.stdout.readline().strip()
            shown = [str(authority.trust_path), str(pair.certificate), str(pair.key), port]
            done = subprocess.run([python, "-c", CLIENT, *shown], capture_output=True, text=True, check=False)
            assert (done.stdout, done.stderr) == ("x", "")
            assert served.stdout.readline().strip() == pair.certificate.stem
