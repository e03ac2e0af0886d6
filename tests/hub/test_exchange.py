"""Releases from and to registries, tars and folders of others."""

import base64
import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.release.layout import Packed, pack, read_folder, write_folder
from landreeve.release.manifest import BadReleaseError, digest_of
from landreeve.release.reference import Reference, parse_reference, repository_of
from landreeve_hub.errors import (
    OperatorError,
    RegistryAuthError,
    RegistryAwayError,
    RegistryError,
    RegistryMissingError,
)
from landreeve_hub.exchange import members
from landreeve_hub.exchange.archive import read_archive, write_archive
from landreeve_hub.exchange.credentials import Login, find_login
from landreeve_hub.exchange.doorway import Doorway
from landreeve_hub.exchange.image_layout import write_layout
from landreeve_hub.exchange.members import read_members
from landreeve_hub.exchange.places import Access, read_place, write_place
from landreeve_hub.exchange.registry import pull_release, push_release

from tests.fakes.graphs import field, graph_of, tensors_of
from tests.fakes.registry import HOST, PASSWORD, USER, FakeRegistry
from tests.hub.hub_without_broker import release
from tests.models.tensor_releases import image_release

REF = Reference(HOST, "models/delay", "v1")


def large() -> Packed:
    packed = release()
    return pack({"card.md": b"# card", "model.onnx": graph_of(os.urandom(300_000))}, packed.config)


def door(registry: FakeRegistry, login: Login | None = None) -> Doorway:
    return Doorway(HOST, login, transport=registry.transport())


ANN = Login(USER, PASSWORD)


# --- registries ---


@pytest.mark.parametrize("auth", ["none", "basic", "bearer"])
def test_release_goes_out_and_comes_back_whole(auth: str) -> None:
    registry, packed = FakeRegistry(auth), large()
    with door(registry, ANN) as way:
        push_release(way, REF, packed)
        assert pull_release(way, REF) == packed
        assert pull_release(way, Reference(HOST, "models/delay", digest=f"sha256:{packed.digest}")) == packed
        uploads = len(registry.uploads)
        push_release(way, Reference(HOST, "models/delay", "v2"), packed)
    assert len(registry.uploads) == uploads  # what is there already is not sent again


@pytest.fixture
def debian_registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry on a port of loopback."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed (Debian: apt-get install docker-registry)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (tmp_path / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: {address}}}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'store'}}}}}\n"
    )
    with subprocess.Popen([program, "serve", str(tmp_path / "config.yml")], stderr=subprocess.DEVNULL) as child:
        for _ in range(200):
            try:
                httpx2.get(f"http://{address}/v2/")
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield address
        child.terminate()


def test_a_real_registry_takes_and_gives_the_same_bytes(
    debian_registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    packed = large()
    place = write_place(packed, f"oci://{debian_registry}/models/delay", "v7", Access())
    assert place == f"oci://{debian_registry}/models/delay:v7"
    assert read_place(place, Access()) == packed
    with pytest.raises(RegistryMissingError, match="not there, MANIFEST_UNKNOWN"):
        read_place(f"oci://{debian_registry}/models/delay:v8", Access())
    if shutil.which("skopeo"):
        command = ["skopeo", "copy", "--src-tls-verify=false", f"docker://{place.removeprefix('oci://')}"]
        subprocess.run([*command, f"oci-archive:{tmp_path}/by-skopeo.tar:v7"], check=True, stdout=subprocess.DEVNULL)
        assert read_place(f"{tmp_path}/by-skopeo.tar", Access()) == packed


@pytest.mark.parametrize("ranges", [True, False])
def test_download_that_breaks_goes_on_from_where_it_was(ranges: bool) -> None:
    registry, packed = FakeRegistry(ranges=ranges), large()
    with door(registry) as way:
        push_release(way, REF, packed)
        registry.break_after = 70_000
        waits: list[float] = []
        if ranges:
            assert pull_release(way, REF, waits.append) == packed
            assert len(waits) >= 4
        else:  # it begins anew each time and never ends: given up, not tried for ever
            with pytest.raises(RegistryAwayError, match="broke off after 70000 bytes"):
                pull_release(way, REF, waits.append)
            assert len(waits) < 20


def test_upload_that_breaks_goes_on_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, packed = FakeRegistry(break_after=40_000), large()
    with door(registry) as way:
        push_release(way, REF, packed, lambda _: None)
        registry.break_after = 0
        assert pull_release(way, REF) == packed


def test_credentials_never_follow_to_another_host() -> None:
    registry, packed = FakeRegistry("bearer", store="blobs.elsewhere.example"), large()
    with door(registry, ANN) as way:
        push_release(way, REF, packed)
        assert pull_release(way, REF) == packed
    proofs: dict[str, set[str]] = {}
    for host, _, _, proof in registry.seen:
        proofs.setdefault(host, set()).add(proof)
    assert proofs["blobs.elsewhere.example"] == {""}
    assert not any(proof.startswith("Basic") for proof in proofs[HOST])  # the password goes to the token service alone


@pytest.mark.parametrize(
    "realm", ["http://auth.registry.example/t", "file:///etc/passwd", "https://u:p@x.example/t", ""]
)
def test_password_is_not_sent_to_a_token_service_without_tls(realm: str) -> None:
    registry = FakeRegistry("bearer")
    registry.realm = realm
    with door(registry, ANN) as way, pytest.raises(RegistryAuthError, match="not TLS"):
        pull_release(way, REF)
    assert {host for host, *_ in registry.seen} == {HOST}


def answering(*answers: httpx2.Response) -> Doorway:
    left = list(answers)
    return Doorway(HOST, ANN, transport=httpx2.MockTransport(lambda _: left.pop(0)))


def test_redirects_are_bounded_and_never_leave_tls() -> None:
    reasons = {"http://x.example/": "not TLS", "ftp://x.example/": "not TLS", "https://a:b@x/": "a login"}
    for target, reason in reasons.items():
        answer = httpx2.Response(302, headers={"Location": target})
        with answering(answer) as way, pytest.raises(RegistryError, match=reason):
            pull_release(way, REF)
    endless = [httpx2.Response(302, headers={"Location": f"https://{HOST}/again"}) for _ in range(9)]
    with answering(*endless) as way, pytest.raises(RegistryError, match="redirects more than 5"):
        pull_release(way, REF)


class Endless(httpx2.SyncByteStream):
    """A body without end; counts what was taken of it."""

    taken = 0

    def __iter__(self) -> Iterator[bytes]:
        while self.taken < 200_000_000:
            self.taken += 65_536
            yield b" " * 65_536


def test_endless_answers_are_given_up_early() -> None:
    """An error, a token, a manifest, a blob that never ends: a few MB are read of each at most."""
    registry, body = FakeRegistry(), Endless()
    with door(registry) as way:
        push_release(way, REF, release())

    def handle(request: httpx2.Request, where: str) -> httpx2.Response:
        if where == "error":
            return httpx2.Response(500, stream=body)
        if where == "token":
            challenge = {"WWW-Authenticate": f'Bearer realm="https://{HOST}/token"'}
            return (
                httpx2.Response(200, stream=body)
                if "token" in request.url.path
                else httpx2.Response(401, headers=challenge)
            )
        if where in request.url.path:
            return httpx2.Response(200, stream=body, headers={"Content-Type": "x"})
        return registry.handle(request)

    for where in ("error", "token", "manifests", "blobs"):
        body.taken = 0
        transport = httpx2.MockTransport(lambda request, where=where: handle(request, where))  # type: ignore[misc]
        with Doorway(HOST, ANN, transport=transport) as way, pytest.raises((RegistryError, BadReleaseError)):
            pull_release(way, REF, lambda _: None)
        assert 0 < body.taken < 3_000_000, where


def test_upload_is_not_sent_to_another_host() -> None:
    answers = [httpx2.Response(404), httpx2.Response(202, headers={"Location": "https://thief.example/upload"})]
    with answering(*answers) as way, pytest.raises(RegistryError, match=r"uploaded to 'thief\.example'"):
        push_release(way, REF, release())


def test_wrong_login_and_no_login_are_told_apart() -> None:
    for login, hint in ((None, "log in with"), (Login("ann", "wrong"), "check the login")):
        with door(FakeRegistry("basic"), login) as way, pytest.raises(RegistryAuthError, match=hint):
            pull_release(way, REF)


def forged(registry: FakeRegistry, change: Callable[[dict[str, Any]], object]) -> None:
    kind, data = registry.manifests["v1"]
    document = json.loads(data)
    change(document)
    registry.manifests["v1"] = (kind, json.dumps(document).encode())


def other_bytes(registry: FakeRegistry) -> None:
    registry.blobs = {digest: b"\0" * len(data) for digest, data in registry.blobs.items()}


INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
HOSTILE_REGISTRIES: dict[str, tuple[Callable[[FakeRegistry], object], str]] = {
    "other bytes": (other_bytes, "do not have their digest"),
    "longer blobs": (lambda r: r.blobs.update({d: b + b"x" for d, b in r.blobs.items()}), "longer than"),
    "an index": (lambda r: r.manifests.update(v1=(INDEX_TYPE, b"{}")), "name one platform"),
    "an image": (lambda r: forged(r, lambda d: d["config"].update(mediaType="x/y")), "not a ModelPack artifact"),
    "endless manifest": (lambda r: r.manifests.update(v1=("x", b" " * 300_000)), "more than 262144 bytes"),
    "huge sizes": (lambda r: forged(r, lambda d: d["layers"][0].update(size=2**50)), "layers or"),
    "path trick": (
        lambda r: forged(r, lambda d: d["layers"][0]["annotations"].update({"org.cncf.model.filepath": "../x.md"})),
        "leads out of the folder",
    ),
    "archived layers": (lambda r: forged(r, lambda d: d["layers"][0].update(mediaType="a/b.tar+gzip")), "archived"),
    "rubbish": (lambda r: r.manifests.update(v1=(r.manifests["v1"][0], b"\xff")), "manifest:"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_REGISTRIES)
def test_what_a_hostile_registry_sends_is_refused(name: str) -> None:
    spoil, reason = HOSTILE_REGISTRIES[name]
    registry = FakeRegistry()
    with door(registry) as way:
        push_release(way, REF, large())
        spoil(registry)
        with pytest.raises((BadReleaseError, RegistryError), match=reason):
            pull_release(way, REF)


def test_manifest_of_another_digest_than_asked_for_is_refused() -> None:
    registry, packed = FakeRegistry(), large()
    with door(registry) as way:
        push_release(way, REF, packed)
        wanted = "sha256:" + "0" * 64
        registry.manifests[wanted] = registry.manifests["v1"]
        with pytest.raises(BadReleaseError, match="sent a manifest of digest"):
            pull_release(way, Reference(HOST, "models/delay", digest=wanted))


def test_plain_http_is_for_loopback_or_for_who_asks_for_it() -> None:
    bases = {Doorway(name).base for name in ("127.0.0.1:5", "localhost", "[::1]:5")}
    assert bases == {"http://127.0.0.1:5", "http://localhost", "http://[::1]:5"}
    assert Doorway("registry.lan:5000").base == "https://registry.lan:5000"
    assert Doorway("127.0.0.1.evil.example").base == "https://127.0.0.1.evil.example"
    assert Doorway("registry.lan:5000", plain_http=True).base == "http://registry.lan:5000"


@pytest.mark.parametrize("port", ["9" * 5000, "80\n", "\u0663\u0664", "65536", ""])
def test_port_of_a_reference_is_a_number_in_ascii(port: str) -> None:
    with pytest.raises(BadReleaseError, match="write it as"):
        parse_reference(f"oci://registry.lan:{port}/models/delay:v1")


@given(st.text(max_size=60))
@settings(max_examples=200)
def test_any_text_as_reference_is_one_or_is_refused(text: str) -> None:
    for tried in (text, f"oci://{text}"):
        try:
            found = parse_reference(tried)
        except BadReleaseError:
            continue
        assert parse_reference(str(found)) == found


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}[A-Za-z0-9]", fullmatch=True))
def test_every_model_has_a_repository_of_its_own(model: str) -> None:
    repository = repository_of(model)
    assert str(parse_reference(f"oci://h/{repository}:v1")) == f"oci://h/{repository}:v1"
    assert repository == model or repository_of(model.swapcase()) != repository


# --- logins ---


def test_login_is_found_where_docker_and_podman_keep_it(tmp_path: Path) -> None:
    def kept(path: Path, document: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))

    encoded = base64.b64encode(b"ann:s:ecret").decode()
    kept(tmp_path / ".docker" / "config.json", {"auths": {"https://a.example/v1/": {"auth": encoded}, "b.example": {}}})
    kept(tmp_path / "run/containers/auth.json", {"auths": {"c.example:5000": {"username": "bob", "password": "p"}}})
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert find_login("a.example", environ, tmp_path) == Login("ann", "s:ecret")
    assert find_login("c.example:5000", environ, tmp_path) == Login("bob", "p")
    for unknown in ("b.example", "c.example", "example", "a.example.evil.example"):
        assert find_login(unknown, environ, tmp_path) is None
    said = environ | {"LANDREEVE_REGISTRY_USER": "eve", "LANDREEVE_REGISTRY_PASSWORD": "q"}
    assert find_login("a.example", said, tmp_path) == Login("eve", "q")
    assert find_login("a.example", said, tmp_path, "flag", "r") == Login("flag", "r")
    assert "ecret" not in repr(find_login("a.example", environ, tmp_path))
    kept(tmp_path / ".docker" / "config.json", {"credHelpers": {"gcr.example": "gcloud"}})
    with pytest.raises(OperatorError, match="credential helper, which is not run"):
        find_login("gcr.example", environ, tmp_path)
    (tmp_path / ".docker" / "config.json").write_text("{")
    with pytest.raises(OperatorError, match=r"config\.json"):
        find_login("a.example", environ, tmp_path)


# --- tars and folders ---


def test_image_layout_and_folder_tar_give_the_release_back(tmp_path: Path) -> None:
    packed = large()
    for data in (write_layout(packed, "v1"), write_archive(packed), gzip.compress(write_layout(packed, "v1"))):
        assert read_archive(io.BytesIO(data)) == packed
    assert write_layout(packed, "v1") == write_layout(packed, "v1")
    for place in ("r.tar", "folder"):
        assert read_place(write_place(packed, str(tmp_path / place), "v1", Access()), Access()) == packed


def test_layout_of_several_needs_a_name() -> None:
    one, two = release("one"), release("two")
    files = dict(read_members(io.BytesIO(write_layout(one, "v1"))))
    other = read_members(io.BytesIO(write_layout(two, "v2")))
    entries = [json.loads(f["index.json"])["manifests"][0] for f in (files, other)]
    files |= other | {"index.json": json.dumps({"manifests": entries}).encode()}
    data = tar_of([(name, content) for name, content in files.items()])
    with pytest.raises(BadReleaseError, match="holds 2 manifests where one is meant \\('v1', 'v2'\\)"):
        read_archive(io.BytesIO(data))
    assert read_archive(io.BytesIO(data), tag="v2") == two


def tar_of(parts: list[Any], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as archive:  # type: ignore[call-overload]
        for name, content in parts:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                content(member)
                archive.addfile(member)
    return out.getvalue()


def link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    def make(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, target

    return make


def sparse() -> bytes:
    """A GNU sparse file of 1 GB that holds nothing."""
    header = bytearray(tarfile.TarInfo("model.onnx").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:398] = header[398:410] = b"00000000000\0"
    header[483:495] = f"{10**9:011o}\0".encode()
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + b"\0" * 1024


HOSTILE_TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "symlink": (lambda: tar_of([("model.onnx", link(tarfile.SYMTYPE, "/etc/passwd"))]), "links and devices"),
    "hardlink": (lambda: tar_of([("a.json", b"{}"), ("b.json", link(tarfile.LNKTYPE, "a.json"))]), "links and devices"),
    "device": (lambda: tar_of([("x.json", link(tarfile.CHRTYPE, ""))]), "links and devices"),
    "fifo": (lambda: tar_of([("x.json", link(tarfile.FIFOTYPE, ""))]), "links and devices"),
    "sparse": (sparse, "no plain file"),
    "above": (lambda: tar_of([("../x.json", b"{}")]), "leads out of the folder"),
    "absolute": (lambda: tar_of([("/etc/x.json", b"{}")]), "absolute"),
    "backslash": (lambda: tar_of([("a\\b.json", b"{}")]), "reverse solidus"),
    "drive": (lambda: tar_of([("C:x.json", b"{}")]), "colon"),
    "look-alike": (lambda: tar_of([("a\u2215b.json", b"{}")]), "division slash"),
    "twice": (lambda: tar_of([("a.json", b"{}"), ("a.json", b"[]")]), "occurs twice"),
    "in two cases": (lambda: tar_of([("a.json", b"{}"), ("A.json", b"[]")]), "differ only in case"),
    "many files": (lambda: tar_of([(f"{n}.json", b"{}") for n in range(200)]), "more than 96 files"),
    "many folders": (lambda: tar_of([(f"{n}/", link(tarfile.DIRTYPE, "")) for n in range(300)]), "more than 96 files"),
    "gzip bomb": (lambda: gzip.compress(tar_of([("x.json", b"\0" * 20_000_000)])), "64 times its size"),
    "pax bomb": (lambda: gzip.compress(tar_of([("x" * 20_000_000, b"")])), "64 times its size"),
    "bzip2": (lambda: tar_of([("a.json", b"{}")], "w:bz2"), "send tar or tar.gz"),
    "xz": (lambda: tar_of([("a.json", b"{}")], "w:xz"), "send tar or tar.gz"),
    "cut off": (lambda: tar_of([("a.json", b"{}" * 9999)])[:5000], "archive:"),
    "cut-off gzip": (lambda: gzip.compress(tar_of([("a.json", os.urandom(9999))]))[:5000], "send tar or tar.gz"),
    "empty": (lambda: b"", "archive:"),
    "text": (lambda: b"hello" * 999, "send tar or tar.gz"),
    "no manifest": (lambda: tar_of([("a.json", b"{}")]), r"no manifest\.json"),
    "empty index": (lambda: tar_of([("oci-layout", b"{}"), ("index.json", b"{}")]), "holds 0 manifests"),
    "index of rubbish": (lambda: tar_of([("oci-layout", b"{}"), ("index.json", b"[" * 9999)]), "index.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_hostile_tar_is_refused_with_its_reason(name: str) -> None:
    make, reason = HOSTILE_TARS[name]
    with pytest.raises(BadReleaseError, match=reason):
        read_archive(io.BytesIO(make()))


def test_archive_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadReleaseError, match="1,000 bytes"):
        read_members(io.BytesIO(tar_of([("a.json", b"x" * 2000)])), limit=1000)
    assert members.MAX_ARCHIVE_BYTES <= 2 * 1024**3


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_nothing_but_a_refusal_comes_of_a_mutated_tar(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(ARCHIVES)))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 600))] = data.draw(st.binary(max_size=20))
        whole = whole or bytearray(b"\0")
    try:
        read_archive(io.BytesIO(bytes(whole)))
    except BadReleaseError:
        return


ARCHIVES = [write_layout(release(), "v1"), write_archive(release()), gzip.compress(write_archive(release()), mtime=0)]


def test_folder_with_a_link_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").symlink_to("/etc/passwd")
    with pytest.raises(BadReleaseError, match="links and devices"):
        read_place(str(tmp_path), Access())
    with pytest.raises(OperatorError, match="cannot be read"):
        read_place(str(tmp_path / "nothing"), Access())


# --- artifacts of other tools ---


Artifact = tuple[bytes, dict[str, bytes]]
CODE = {
    "mediaType": "application/vnd.cncf.model.code.v1.raw",
    "digest": "sha256:" + "0" * 64,
    "size": 1,
    "annotations": {"org.cncf.model.filepath": "run.json"},
}


def without(files: dict[str, bytes], name: str) -> Artifact:
    return foreign({path: data for path, data in files.items() if path != name})


def foreign(files: dict[str, bytes], *, name_by: str = "org.cncf.model.filepath", **more: Any) -> Artifact:
    """A ModelPack artifact as another tool makes it: no ``landreeve.json``, its own config."""
    config = {
        "descriptor": {"name": "theirs", "family": "resnet", "createdAt": "2026-02-03T04:05:06Z", "revision": "abc"},
        "config": {"format": "onnx"},
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{digest_of(data)}" for data in files.values()]},
    }
    described = [
        {
            "mediaType": "application/vnd.cncf.model.weight.v1.raw",
            "digest": f"sha256:{digest_of(data)}",
            "size": len(data),
            "annotations": {name_by: path},
        }
        for path, data in files.items()
    ]
    blob = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": f"sha256:{digest_of(blob)}",
            "size": len(blob),
        },
        "layers": described,
    } | more
    return json.dumps(manifest).encode(), {digest_of(data): data for data in (*files.values(), blob)}


def in_registry(manifest: bytes, blobs: dict[str, bytes]) -> FakeRegistry:
    registry = FakeRegistry()
    registry.manifests["v1"] = ("application/vnd.oci.image.manifest.v1+json", manifest)
    registry.blobs = {f"sha256:{digest}": data for digest, data in blobs.items()}
    return registry


@pytest.fixture(scope="module")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = image_release(tmp_path_factory.mktemp("image") / "r")
    packed = read_folder(folder)
    return {layer.path: packed.file(layer.path) for layer in packed.manifest.layers if layer.path != "landreeve.json"}


@pytest.mark.parametrize("name_by", ["org.cncf.model.filepath", "org.opencontainers.image.title"])
def test_artifact_of_another_tool_becomes_a_release_when_it_holds_one(
    image_files: dict[str, bytes], name_by: str
) -> None:
    with door(in_registry(*foreign(image_files, name_by=name_by))) as way:
        packed = pull_release(way, REF)
    assert {layer.path for layer in packed.manifest.layers} == {*image_files, "landreeve.json"}
    assert (packed.config.family, packed.config.created) == ("resnet", "2026-02-03T04:05:06Z")
    assert packed.config.lineage.reason == f"imported from oci://{HOST}/models/delay:v1"
    assert packed.config.lineage.code == "abc"


def test_model_folder_that_was_never_packed_becomes_a_release(image_files: dict[str, bytes], tmp_path: Path) -> None:
    for name, data in image_files.items():
        (tmp_path / name).write_bytes(data)
    packed = read_place(str(tmp_path), Access())
    assert {layer.path for layer in packed.manifest.layers} == {*image_files, "landreeve.json"}
    write_folder(packed, tmp_path / "packed")
    assert read_place(str(tmp_path / "packed"), Access()) == packed


FOREIGN: dict[str, tuple[Callable[[dict[str, bytes]], Artifact], str]] = {
    "no definition": (lambda f: without(f, "definition.json"), r"has no definition\.json"),
    "no golden set": (lambda f: without(f, "golden.safetensors"), r"has no golden\.saf"),
    "pickle": (lambda f: foreign({**f, "pytorch_model.bin": b"x"}), "never pickle"),
    "licence without a suffix": (lambda f: foreign({**f, "LICENSE": b"x"}), "format not accepted"),
    "pickle by another name": (lambda f: foreign({**f, "x.safetensors": b"\x80\x04K\x01."}), "is a pickle"),
    "code": (lambda f: foreign(f, layers=[CODE]), "is code"),
    "foreign domain": (lambda f: foreign({**f, "model.onnx": graph_of(domain=b"x")}), "operator domain 'x'"),
    "external tensor": (
        lambda f: foreign({**f, "model.onnx": graph_of(nodes=field(5, field(2, 1) + field(13, b"")))}),
        "outside the file",
    ),
    "another definition": (lambda f: foreign({**f, "definition.json": b"{}"}), r"definition\.json"),
    "a golden set of rubbish": (lambda f: foreign({**f, "golden.safetensors": tensors_of(b"x", dtype="?")}), "dtype"),
    "docker image": (
        lambda f: foreign(f, artifactType="application/vnd.docker.container.image.v1+json"), "not a ModelPack artifact",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_artifact_of_another_tool_is_refused_with_a_reason(image_files: dict[str, bytes], name: str) -> None:
    make, reason = FOREIGN[name]
    with door(in_registry(*make(image_files))) as way, pytest.raises(BadReleaseError, match=reason):
        pull_release(way, REF)


def test_ours_from_elsewhere_stays_the_very_release(image_files: dict[str, bytes], tmp_path: Path) -> None:
    packed = read_folder(image_release(tmp_path / "r"))
    with door(in_registry(packed.manifest_bytes, packed.blobs)) as way:
        assert pull_release(way, REF) == packed
    swapped = msgspec.structs.replace(packed.config, model="other")
    assert pack({"model.onnx": packed.file("model.onnx")}, swapped).digest != packed.digest
