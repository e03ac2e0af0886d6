"""What an OCI client hears of a release that the hub's disk has spoilt: that it is not there, until it is whole."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from landreeve.blobs.codec import BlobReader, PlainCodec
from landreeve.release.layout import Packed
from landreeve.wire.messages import Fact, UpdateReport
from landreeve_hub.access import tokens, users
from landreeve_hub.access.roles import Role

from tests.hub.hub_without_broker import Hub, push, release


class _Sectors:
    """A file of the disk below, read through its faults."""

    def __init__(self, below: BlobReader, disk: "Disk", digest: str) -> None:
        self._below, self._disk, self._digest = below, disk, digest
        self.size = below.size

    def read_at(self, offset: int, length: int) -> bytes:
        self._disk.read.append(self._digest)
        if self._digest in self._disk.unreadable:
            raise OSError(errno.EIO, "Input/output error")
        data = self._below.read_at(offset, length)
        return data[::-1] if self._digest in self._disk.forgotten else data

    def close(self) -> None:
        self._below.close()


class Disk(PlainCodec):
    """A disk that gives other bytes than were written, or none, and changes no file's time; what is written anew lies
    in other sectors."""

    def __init__(self) -> None:
        self.unreadable: set[str] = set()
        self.forgotten: set[str] = set()
        self.read: list[str] = []

    def encode(self, digest: str, data: bytes) -> bytes:
        self.unreadable.discard(digest)
        self.forgotten.discard(digest)
        return data

    def open(self, path: Path, digest: str) -> BlobReader:
        return _Sectors(super().open(path, digest), self, digest)


@asynccontextmanager
async def client_of(hub: Hub) -> AsyncIterator[httpx2.AsyncClient]:
    """An OCI client of the hub on a real port, with a token as password."""
    server = uvicorn.Server(uvicorn.Config(hub.app, port=0, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn tells it in no other way
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        secret = await hub.store.write(lambda c: _token(c, hub))
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", auth=("anyone", secret)) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


def _token(connection: Any, hub: Hub) -> str:
    users.ensure(connection, "vic", Role.VIEWER, hub.now)
    return tokens.create(connection, "vic", "pulls", scopes=["view"], days=1, now=hub.now)


async def pushed(hub: Hub, packed: Packed) -> None:
    async with await hub.person("ann", Role.ML_ENGINEER) as ann:
        await push(ann, packed)


async def shown(client: httpx2.AsyncClient, packed: Packed, digest: str) -> list[int]:
    """What a client hears of a blob: asked whether it is there, pulled, and a part of it."""
    url = f"/v2/delay/blobs/sha256:{digest}"
    part = {"Range": "bytes=2-5"}
    answers = [await client.head(url), await client.get(url), await client.get(url, headers=part)]
    for answer in answers:
        if answer.status_code == 404 and answer.content:
            (error,) = answer.json()["errors"]
            assert error["code"] == "BLOB_UNKNOWN"
            assert "push its release again" in error["message"]
        elif answer.content:
            assert answer.content in {packed.blobs[digest], packed.blobs[digest][2:6]}
    return [answer.status_code for answer in answers]


def rewrite(hub: Hub, digest: str, change: Callable[[bytes], bytes]) -> None:
    path = hub.blobs.path(digest)
    path.write_bytes(change(path.read_bytes()))


def rejected(packed: Packed, cause: str) -> Fact:
    """What a device tells whose update ended before it began."""
    body = UpdateReport(
        model="delay", rollout="r-1", generation=1, release=packed.digest, version="v1", state="REJECTED",
        previous="DOWNLOADING", cause=cause, sentence="It did not come.",
    )  # fmt: skip
    return Fact(epoch=1, seq=1, at="2026-05-01T12:00:00Z", body=body)


FAULTS: dict[str, Callable[[Hub, Disk, str], object]] = {
    "altered": lambda hub, _, digest: rewrite(hub, digest, lambda data: b"?" + data[1:]),
    "cut off": lambda hub, _, digest: rewrite(hub, digest, lambda data: data[: len(data) // 2]),
    "lost": lambda hub, _, digest: hub.blobs.path(digest).unlink(),
    "a folder in its place": lambda hub, _, digest: (hub.blobs.path(digest).unlink(), hub.blobs.path(digest).mkdir()),
    "unreadable": lambda hub, disk, digest: (disk.unreadable.add(digest), os.utime(hub.blobs.path(digest), ns=(1, 1))),
}
MENDED = [name for name in FAULTS if name != "a folder in its place"]  # no file of ours: a person takes it away


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_damaged_blob_is_not_there_until_its_release_is_pushed_again(tmp_path: Path, fault: str) -> None:
    disk, packed = Disk(), release()
    hub = Hub(tmp_path, codec=disk)
    await pushed(hub, packed)
    digest, *others = sorted(packed.blobs, key=lambda one: -len(packed.blobs[one]))
    async with client_of(hub) as client:
        assert await shown(client, packed, digest) == [200, 200, 206]
        FAULTS[fault](hub, disk, digest)
        assert await shown(client, packed, digest) == [404, 404, 404]
        assert await shown(client, packed, others[0]) == [200, 200, 206]
        if fault in MENDED:
            await pushed(hub, packed)
            assert await shown(client, packed, digest) == [200, 200, 206]
    hub.store.close()


async def test_what_a_device_found_damaged_is_looked_at_again_also_where_no_file_changed(tmp_path: Path) -> None:
    disk, packed = Disk(), release()
    hub = Hub(tmp_path, codec=disk)
    await pushed(hub, packed)
    digest = max(packed.blobs, key=lambda one: len(packed.blobs[one]))
    async with client_of(hub) as client:
        url = f"/v2/delay/blobs/sha256:{digest}"
        assert (await client.head(url)).status_code == 200
        disk.forgotten.add(digest)
        for cause, status in (("disk_full", 200), ("corrupt_artifact", 404)):
            fact = rejected(packed, cause)
            await hub.store.write(lambda c, said=fact: hub.registry.shelf.soundness.apply(c, "d-1", said))
            assert (await client.head(url)).status_code == status, cause
        await pushed(hub, packed)
        assert await shown(client, packed, digest) == [200, 200, 206]
    hub.store.close()


async def test_a_hub_that_starts_again_takes_nothing_for_whole_that_it_has_not_read(tmp_path: Path) -> None:
    disk, packed = Disk(), release()
    hub = Hub(tmp_path, codec=disk)
    await pushed(hub, packed)
    digest = max(packed.blobs, key=lambda one: len(packed.blobs[one]))
    async with client_of(hub) as client:
        assert (await client.head(f"/v2/delay/blobs/sha256:{digest}")).status_code == 200
    hub.store.close()
    disk.forgotten.add(digest)
    again = Hub(tmp_path, codec=disk)
    async with client_of(again) as client:
        assert await shown(client, packed, digest) == [404, 404, 404]
        await pushed(again, packed)
        assert await shown(client, packed, digest) == [200, 200, 206]
    again.store.close()


async def test_asking_whether_a_blob_is_there_reads_it_once_for_all_who_ask(tmp_path: Path) -> None:
    disk, packed = Disk(), release()
    hub = Hub(tmp_path, codec=disk)
    await pushed(hub, packed)
    digest = max(packed.blobs, key=lambda one: len(packed.blobs[one]))
    async with client_of(hub) as client:
        disk.read.clear()
        url = f"/v2/delay/blobs/sha256:{digest}"
        answers = await asyncio.gather(*(client.head(url) for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert disk.read.count(digest) == 1
    hub.store.close()


async def test_damaged_manifest_is_no_other_releases_trouble(tmp_path: Path) -> None:
    hub, first, second = Hub(tmp_path), release("one"), release("two")
    for packed in (first, second):
        await pushed(hub, packed)
    hub.blobs.path(first.digest).write_bytes(b"{}")
    hub.registry.shelf._parts.clear()  # as after a start
    async with client_of(hub) as client:
        for wanted in ("v1", f"sha256:{first.digest}"):
            answer = await client.get(f"/v2/delay/manifests/{wanted}")
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "MANIFEST_UNKNOWN")
            assert "push its release again" in answer.json()["errors"][0]["message"]
        for digest in second.blobs:
            assert await shown(client, second, digest) == [200, 200, 206]
        await pushed(hub, first)
        assert (await client.get("/v2/delay/manifests/v1")).content == first.manifest_bytes
        for digest in first.blobs:
            assert await shown(client, first, digest) == [200, 200, 206]
    hub.store.close()
