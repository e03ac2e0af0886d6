"""The hub as a registry: what any client of the OCI distribution specification gets, checked byte by byte."""

import asyncio
import base64
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed
from landreeve.release.manifest import digest_of
from landreeve.sealed.blobs import SealedCodec
from landreeve_hub.access import tokens, users
from landreeve_hub.access.roles import Permission, Role
from landreeve_hub.api import oci_routes
from landreeve_hub.api.guard import Require, walk
from landreeve_hub.api.oci_routes import RequirePull
from landreeve_hub.exchange.archive import read_archive
from landreeve_hub.registry.shelf import Shelf
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from sqlalchemy import insert, update

from tests.hub.hub_without_broker import Hub, push, release

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    made = Hub(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
async def pushed(hub: Hub) -> Packed:
    """A release in the registry, as v1."""
    packed = release()
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        await push(ann, packed)
    return packed


@pytest.fixture
async def viewer(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    async with await hub.person("vic", Role.VIEWER) as client:
        yield client


async def secret_of(hub: Hub, name: str = "vic", scopes: tuple[str, ...] = ("view",)) -> str:
    def make(connection: Any) -> str:
        users.ensure(connection, name, Role.VIEWER, hub.now)
        return tokens.create(connection, name, "registry", scopes=list(scopes), days=1, now=hub.now)

    return await hub.store.write(make)


def code_of(answer: httpx2.Response) -> str:
    return str(answer.json()["errors"][0]["code"])


async def test_every_byte_of_a_release_is_pulled_by_tag_and_by_digest(
    hub: Hub, pushed: Packed, viewer: httpx2.AsyncClient
) -> None:
    for wanted in ("v1", f"sha256:{pushed.digest}"):
        answer = await viewer.get(f"/v2/delay/manifests/{wanted}")
        assert (answer.status_code, answer.content) == (200, pushed.manifest_bytes)
        assert answer.headers["content-type"] == MANIFEST_TYPE
        assert answer.headers["docker-content-digest"] == f"sha256:{pushed.digest}"
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
        head = await viewer.head(f"/v2/delay/manifests/{wanted}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(pushed.manifest_bytes))
    for digest, data in pushed.blobs.items():
        answer = await viewer.get(f"/v2/delay/blobs/sha256:{digest}")
        assert (answer.status_code, answer.content) == (200, data)
        head = await viewer.head(f"/v2/delay/blobs/sha256:{digest}")
        assert (head.headers["content-length"], head.headers["accept-ranges"]) == (str(len(data)), "bytes")


async def test_blob_goes_on_from_where_it_broke_off(pushed: Packed, viewer: httpx2.AsyncClient) -> None:
    digest, data = max(pushed.blobs.items(), key=lambda item: len(item[1]))
    url, size = f"/v2/delay/blobs/sha256:{digest}", len(data)
    parts = {"7-": (7, size), "0-0": (0, 1), "3-9": (3, 10), "-5": (size - 5, size), "5-99999999": (5, size)}
    for asked, (first, end) in parts.items():
        answer = await viewer.get(url, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, data[first:end]), asked
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"
        assert answer.headers["content-length"] == str(end - first)
    for whole in ("bytes=0-", "bytes=-", "bytes=9-3", "bytes=0-1,3-4", "lines=1-2", f"bytes=-{size * 2}"):
        answer = await viewer.get(url, headers={"Range": whole})
        assert (answer.status_code, answer.content) == (200, data), whole
    for beyond in (f"bytes={size}-", "bytes=-0"):
        answer = await viewer.get(url, headers={"Range": beyond})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
    stale = await viewer.get(url, headers={"Range": "bytes=7-", "If-Range": '"another"'})
    assert (stale.status_code, stale.content) == (200, data)


async def test_sealed_store_gives_out_the_blobs_and_not_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path / "hub.db")
    blobs = BlobStore(tmp_path / "blobs", codec=SealedCodec({"0" * 16: b"k" * 32}))
    packed = release()
    for data in (packed.manifest_bytes, *packed.blobs.values()):
        blobs.put(data)
    row = {"digest": packed.digest, "model": "delay", "version": "v1", "state": "draft", "manifest_bytes": 2}
    await store.write(lambda c: c.execute(insert(tables.releases).values(row)) and None)
    shelf = Shelf(store, blobs)
    for digest, data in packed.blobs.items():
        reader = await shelf.blob("delay", digest)
        assert reader.read_at(0, reader.size) == data != blobs.path(digest).read_bytes()
        reader.close()
    store.close()


async def test_tags_come_in_pages(hub: Hub, viewer: httpx2.AsyncClient) -> None:
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        digests = [await push(ann, release(f"note {n}")) for n in range(11)]
    alias = {"model": "delay", "alias": "fleet", "digest": digests[3]}
    await hub.store.write(lambda c: c.execute(insert(tables.aliases).values(alias)) and None)
    every = sorted([f"v{n}" for n in range(1, 12)] + ["fleet"])
    assert (await viewer.get("/v2/delay/tags/list")).json() == {"name": "delay", "tags": every}
    found: list[str] = []
    url = "/v2/delay/tags/list?n=5"
    while url:
        answer = await viewer.get(url)
        found += answer.json()["tags"]
        url = answer.headers.get("link", "").partition(">")[0].removeprefix("<")
    assert found == every
    nothing = await viewer.get("/v2/delay/tags/list?n=0")
    assert (nothing.json()["tags"], "link" in nothing.headers) == ([], False)
    assert (await viewer.get("/v2/delay/tags/list?n=2&last=v10")).json()["tags"] == ["v11", "v2"]
    assert (await viewer.get("/v2/delay/tags/list?n=-1")).status_code == 400
    assert (await viewer.get("/v2/delay/manifests/fleet")).headers["docker-content-digest"] == f"sha256:{digests[3]}"
    assert (await viewer.get("/v2/_catalog")).json() == {"repositories": ["delay"]}


async def test_withdrawn_release_is_off_the_shelf(hub: Hub, pushed: Packed, viewer: httpx2.AsyncClient) -> None:
    blob = next(iter(pushed.blobs))
    for state in ("withdrawn", "quarantined"):
        await hub.store.write(lambda c, s=state: c.execute(update(tables.releases).values(state=s)) and None)
        for wanted in ("v1", f"sha256:{pushed.digest}"):
            answer = await viewer.get(f"/v2/delay/manifests/{wanted}")
            assert (answer.status_code, code_of(answer)) == (404, "MANIFEST_UNKNOWN")
        assert code_of(await viewer.get(f"/v2/delay/blobs/sha256:{blob}")) == "BLOB_UNKNOWN"
        assert (await viewer.get("/v2/delay/tags/list")).json()["tags"] == []


async def test_no_repository_opens_a_blob_of_another(hub: Hub, pushed: Packed, viewer: httpx2.AsyncClient) -> None:
    row = {"digest": digest_of(b"other"), "model": "other", "version": "v1", "state": "draft", "manifest_bytes": 2}
    hub.services.releases.shelf._blobs.put(b"other")  # type: ignore[attr-defined]
    await hub.store.write(lambda c: c.execute(insert(tables.releases).values(row)) and None)
    secret = digest_of(b"other")
    assert code_of(await viewer.get(f"/v2/delay/blobs/sha256:{secret}")) == "BLOB_UNKNOWN"
    assert code_of(await viewer.get(f"/v2/delay/manifests/sha256:{secret}")) == "MANIFEST_UNKNOWN"


REFUSED = [
    ("GET", "/v2/nobody/tags/list", 404, "NAME_UNKNOWN"),
    ("GET", "/v2/nobody/manifests/v1", 404, "NAME_UNKNOWN"),
    ("GET", "/v2/delay/manifests/v99", 404, "MANIFEST_UNKNOWN"),
    ("GET", f"/v2/delay/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN"),
    ("GET", "/v2/delay/blobs/sha256:..%2f..%2fhub.db", 404, "NAME_UNKNOWN"),
    ("GET", "/v2/delay/blobs/md5:abc", 400, "DIGEST_INVALID"),
    ("GET", "/v2/delay/referrers/nothing", 400, "DIGEST_INVALID"),
    ("GET", "/v2/some/where", 404, "NAME_UNKNOWN"),
    ("POST", "/v2/delay/blobs/uploads/", 405, "UNSUPPORTED"),
    ("PUT", "/v2/delay/manifests/v1", 405, "UNSUPPORTED"),
    ("PATCH", "/v2/delay/blobs/uploads/x", 405, "UNSUPPORTED"),
    ("DELETE", "/v2/delay/manifests/v1", 405, "UNSUPPORTED"),
]


async def test_errors_are_those_of_the_specification(pushed: Packed, viewer: httpx2.AsyncClient) -> None:
    for method, path, status, code in REFUSED:
        answer = await viewer.request(method, path)
        assert (answer.status_code, code_of(answer)) == (status, code), path
        assert answer.json()["errors"][0]["message"]


async def test_stranger_is_challenged_everywhere(hub: Hub, pushed: Packed) -> None:
    blob = next(iter(pushed.blobs))
    paths = [
        "/", "/_catalog", "/token", "/delay/tags/list", "/delay/manifests/v1", f"/delay/blobs/sha256:{blob}",
        f"/delay/referrers/sha256:{pushed.digest}", "/anything", "/delay/blobs/uploads/",
    ]  # fmt: skip
    expired, scopeless = await secret_of(hub), await secret_of(hub, "max", ("enrol",))
    hub_now = hub.now
    async with hub.client() as stranger, hub.client(scopeless) as elsewhere:
        for path in paths:
            for method in ("GET", "POST") if path == "/delay/blobs/uploads/" else ("GET",):
                answer = await stranger.request(method, f"/v2{path}")
                assert (answer.status_code, code_of(answer)) == (401, "UNAUTHORIZED"), path
                assert answer.headers["www-authenticate"].startswith('Bearer realm="http://127.0.0.1/v2/token"')
                answer = await elsewhere.request(method, f"/v2{path}")
                assert (answer.status_code, code_of(answer)) == (403, "DENIED"), path
        behind = await stranger.get("/v2/", headers={"X-Forwarded-Proto": "https"})
        assert behind.headers["www-authenticate"].startswith('Bearer realm="https://127.0.0.1/v2/token"')
        hub.now = hub_now.replace(year=hub_now.year + 1)
        answer = await stranger.get("/v2/", headers={"Authorization": f"Bearer {expired}"})
        assert answer.status_code == 401


def test_every_route_of_the_registry_asks_for_a_token_that_may_view(hub: Hub) -> None:
    found = list(walk(oci_routes.router(hub.services).routes))
    asked = [[d.call for d in route.dependant.dependencies if isinstance(d.call, Require)] for route in found]
    assert len(found) >= 9
    assert all(len(one) == 1 and isinstance(one[0], RequirePull) for one in asked)
    assert {one[0].permission for one in asked} == {Permission.VIEW}


async def test_token_counts_as_bearer_as_password_and_by_way_of_the_token_service(hub: Hub, pushed: Packed) -> None:
    secret = await secret_of(hub)
    basic = base64.b64encode(f"anyone:{secret}".encode()).decode()
    async with hub.client() as client:
        told = await client.get("/v2/token?service=landreeve-hub", headers={"Authorization": f"Basic {basic}"})
        for value in (f"Bearer {secret}", f"Basic {basic}", f"Bearer {told.json()['token']}"):
            answer = await client.get("/v2/delay/manifests/v1", headers={"Authorization": value})
            assert answer.status_code == 200
        for value in ("Basic !", f"Basic {base64.b64encode(b'a:b').decode()}", "Bearer", f"Digest {secret}"):
            assert (await client.get("/v2/", headers={"Authorization": value})).status_code == 401


async def test_image_layout_goes_in_and_out_by_the_api(hub: Hub, pushed: Packed) -> None:
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        data = (await ann.get("/api/v1/releases/delay:v1/archive?form=oci")).content
        assert read_archive(io.BytesIO(data)) == pushed
        headers = {"Content-Type": "application/x-tar"}
        again = await ann.post("/api/v1/releases", content=data, headers=headers)
        assert (again.status_code, again.json()) == (201, {"digest": pushed.digest, "version": "v1"})
        unknown = await ann.post("/api/v1/releases?tag=v9", content=data, headers=headers)
        assert (unknown.status_code, "holds 0 manifests" in unknown.json()["detail"]) == (422, True)
        assert (await ann.get("/api/v1/releases/delay:v1")).json()["repository"] == "delay"
        none = await ann.get("/api/v1/releases/delay")
        assert none.status_code == 404  # none is approved yet


# --- clients of others ---


@pytest.fixture
async def address(hub: Hub) -> AsyncIterator[str]:
    """The hub on a real port of loopback; ``host:port``."""
    config = uvicorn.Config(hub.app, port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn tells it in no other way
        await asyncio.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


async def ran(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (packaging/setup_env.py test)")
async def test_skopeo_copies_a_release_by_tag_and_by_digest(
    hub: Hub, pushed: Packed, address: str, tmp_path: Path
) -> None:
    secret = await secret_of(hub)
    options = ["--tls-verify=false", "--creds", f"anyone:{secret}"]
    for number, wanted in enumerate((":v1", f"@sha256:{pushed.digest}")):
        layout = tmp_path / f"layout{number}"
        source = ["--src-tls-verify=false", "--src-creds", f"anyone:{secret}"]
        await ran("skopeo", "copy", *source, f"docker://{address}/delay{wanted}", f"oci:{layout}:r")
        index = json.loads((layout / "index.json").read_text())
        assert index["manifests"][0]["digest"] == f"sha256:{pushed.digest}"
        for digest, data in {**pushed.blobs, pushed.digest: pushed.manifest_bytes}.items():
            assert (layout / "blobs" / "sha256" / digest).read_bytes() == data
    raw = await ran("skopeo", "inspect", "--raw", *options, f"docker://{address}/delay:v1")
    assert raw.encode() == pushed.manifest_bytes
    assert json.loads(await ran("skopeo", "list-tags", *options, f"docker://{address}/delay"))["Tags"] == ["v1"]


async def test_oras_lays_out_every_file_by_its_name(hub: Hub, pushed: Packed, address: str, tmp_path: Path) -> None:
    oras = pytest.importorskip("oras.client", reason="the oras client is not installed")
    secret = await secret_of(hub)

    def pull(wanted: str, folder: Path) -> list[str]:
        client = oras.OrasClient(hostname=address, insecure=True)
        client.auth.set_basic_auth("anyone", secret)
        found: list[str] = client.pull(target=f"{address}/delay{wanted}", outdir=str(folder))
        assert client.get_tags(f"{address}/delay") == ["v1"]
        client.session.close()
        return found

    for wanted in (":v1", f"@sha256:{pushed.digest}"):
        folder = tmp_path / wanted[:3]
        await asyncio.to_thread(pull, wanted, folder)
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert files == {layer.path: pushed.file(layer.path) for layer in pushed.manifest.layers}
