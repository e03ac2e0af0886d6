"""A release enters the registry whole and judged, and is signed before it counts as approved."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from landreeve.blobs.store import BlobStore
from landreeve.release.layout import Packed, pack
from landreeve.release.manifest import (
    BadReleaseError,
    Column,
    Gates,
    Lineage,
    ReleaseConfig,
    Signature,
    digest_of,
    encode_manifest,
    encode_settings,
)
from landreeve_hub.registry.releases import NoSuchReleaseError, Registered, Registry, WrongStateError
from landreeve_hub.store import tables
from landreeve_hub.store.database import Store
from onnx import TensorProto, helper
from sqlalchemy import select, update

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
WIDTH = 2


def graph(*, operator: str = "MatMul", domain: str = "", width: int = WIDTH) -> bytes:
    """x (n, width) times weights, squeezed to (n,)."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [width, 1], np.zeros(width).tolist())
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node(operator, ["x", "w"], ["y"], domain=domain),
        helper.make_node("Squeeze", ["y", "axes"], ["p"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
    p = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n"])
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [p], [weights, axes]), opset_imports=opsets)
    data: bytes = model.SerializeToString()
    return data


def release(model: str = "delay", *, note: str = "first", onnx_bytes: bytes | None = None) -> Packed:
    """A small release that is all right unless told otherwise."""
    config = ReleaseConfig(
        model=model,
        family="mlp",
        created="2026-05-01T00:00:00Z",
        signature=Signature(inputs=(Column(name="wind", kind="number"),), output="late", width=WIDTH),
        gates=Gates(metrics={"log_loss": 0.5}),
        lineage=Lineage(site="EWR"),
    )
    files = {
        "model.onnx": onnx_bytes or graph(),
        "definition.json": msgspec.json.encode({"name": model, "purpose": "late or not"}),
        "card.md": note.encode(),
    }
    return pack(files, config)


class Signatures:
    """The approvers' list, in memory."""

    def __init__(self) -> None:
        self.signed: dict[str, tuple[int, str, str, str]] = {}

    def add_release(  # noqa: PLR0917  the real one's order
        self, digest: str, length: int, model: str, version: str, approved_by: str, now: datetime
    ) -> None:
        del now
        self.signed[digest] = (length, model, version, approved_by)

    def remove_release(self, digest: str, now: datetime) -> None:
        del now
        self.signed.pop(digest, None)

    def releases(self) -> dict[str, int]:
        return {digest: facts[0] for digest, facts in self.signed.items()}

    def standing(self, digest: str) -> str:
        return "" if digest in self.signed else "awaiting signatures: 0 of 1 (missing: targets)"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = Store(tmp_path / "hub.db")
    yield opened
    opened.close()


@pytest.fixture
def signatures() -> Signatures:
    return Signatures()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def registry(store: Store, blobs: BlobStore, signatures: Signatures) -> Registry:
    return Registry(store, blobs, signatures)


async def _row(store: Store, digest: str) -> Any:
    return await store.read(
        lambda c: c.execute(select(tables.releases).where(tables.releases.c.digest == digest)).one()
    )


async def test_a_release_becomes_a_numbered_draft_and_comes_back_whole(registry: Registry, store: Store) -> None:
    first, second = release(), release(note="second")
    assert await registry.register(first, "ann", NOW) == Registered(first.digest, "v1")
    assert await registry.register(second, "ann", NOW) == Registered(second.digest, "v2")
    assert await registry.register(release("other"), "ann", NOW) == Registered(release("other").digest, "v1")
    assert registry.pull(first.digest) == first
    row = await _row(store, first.digest)
    assert (row.state, row.created_by, row.manifest_bytes) == ("draft", "ann", len(first.manifest_bytes))
    assert row.config["gates"]["metrics"] == {"log_loss": 0.5}
    models = await store.read(lambda c: c.execute(select(tables.models)).all())
    assert {model.name: model.definition["purpose"] for model in models}["delay"] == "late or not"


async def test_the_same_release_again_is_the_same_version(registry: Registry) -> None:
    await registry.register(release(), "ann", NOW)
    assert (await registry.register(release(), "bob", NOW)).version == "v1"


async def test_approval_signs_and_withdrawal_takes_the_signature_back(
    registry: Registry, store: Store, signatures: Signatures
) -> None:
    packed = release()
    await registry.register(packed, "ann", NOW)
    assert signatures.signed == {}
    await registry.approve(packed.digest, "bob", NOW)
    assert signatures.signed == {packed.digest: (len(packed.manifest_bytes), "delay", "v1", "bob")}
    assert (await _row(store, packed.digest)).approved_by == "bob"
    await registry.withdraw(packed.digest, "cid", NOW)
    assert signatures.signed == {}
    row = await _row(store, packed.digest)
    assert (row.state, row.approved_by) == ("withdrawn", "bob")


async def test_a_quarantined_release_is_not_approved_again(
    registry: Registry, store: Store, signatures: Signatures
) -> None:
    packed = release()
    await registry.register(packed, "ann", NOW)
    await store.write(lambda c: c.execute(update(tables.releases).values(state="quarantined")).rowcount)
    with pytest.raises(WrongStateError, match="delay v1 is quarantined"):
        await registry.approve(packed.digest, "bob", NOW)
    assert signatures.signed == {}


async def test_what_is_not_here_is_named(registry: Registry) -> None:
    with pytest.raises(NoSuchReleaseError, match="push it first"):
        await registry.approve("a" * 64, "bob", NOW)
    with pytest.raises(NoSuchReleaseError):
        registry.pull("a" * 64)


@pytest.mark.parametrize(
    ("onnx_bytes", "reason"),
    [
        (b"\x80\x04K\x01.", "is a pickle"),
        (graph(operator="Evil", domain="com.evil"), "operator domain 'com.evil' is not accepted"),
        (graph(width=3), "width 3, expected 2"),
    ],
)
async def test_a_graph_that_must_not_be_loaded_never_enters(
    registry: Registry, store: Store, blobs: BlobStore, onnx_bytes: bytes, reason: str
) -> None:
    with pytest.raises(BadReleaseError, match=reason):
        await registry.register(release(onnx_bytes=onnx_bytes), "ann", NOW)
    assert await store.read(lambda c: c.execute(select(tables.releases)).all()) == []
    assert blobs.digests() == frozenset()


async def test_swapped_bytes_and_missing_files_are_refused(registry: Registry) -> None:
    packed = release()
    layer = packed.manifest.layer("card.md")
    assert layer is not None
    swapped = Packed(packed.manifest_bytes, packed.digest, {**packed.blobs, layer.sha256: b"FIRST"})
    with pytest.raises(BadReleaseError, match=r"card\.md"):
        await registry.register(swapped, "ann", NOW)
    short = {digest: data for digest, data in packed.blobs.items() if digest != layer.sha256}
    with pytest.raises(BadReleaseError, match="send the whole release"):
        await registry.register(Packed(packed.manifest_bytes, packed.digest, short), "ann", NOW)


async def test_a_release_whose_block_list_lies_is_refused(registry: Registry) -> None:
    packed = release()
    manifest = packed.manifest
    lying = encode_settings(msgspec.structs.replace(packed.config, blocks={manifest.layers[0].sha256: ("b" * 64,)}))
    described = msgspec.structs.replace(manifest.settings, digest=f"sha256:{digest_of(lying)}", size=len(lying))
    layers = tuple(described if layer.path == described.path else layer for layer in manifest.layers)
    forged = encode_manifest(msgspec.structs.replace(manifest, layers=layers))
    blobs = {**packed.blobs, digest_of(lying): lying}
    with pytest.raises(BadReleaseError, match="blocks of"):
        await registry.register(Packed(forged, digest_of(forged), blobs), "ann", NOW)


async def test_a_challenger_that_arrived_becomes_a_draft_with_its_source(
    registry: Registry, store: Store, blobs: BlobStore
) -> None:
    packed = release()
    for data in (packed.manifest_bytes, *packed.blobs.values()):
        blobs.put(data)
    version = await registry.register_stored(packed.digest, by="site:d-1", device="d-1", run="r-1", now=NOW)
    row = await _row(store, packed.digest)
    assert (version, row.source_device, row.source_run) == ("v1", "d-1", "r-1")


def test_the_graph_of_these_tests_is_one() -> None:
    onnx.checker.check_model(onnx.load_model_from_string(graph()))
