"""The bill of materials of an approved release: valid by the published schema, complete, and found by its release."""

import json
from pathlib import Path
from typing import Any

import msgspec
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from hypothesis import given, settings
from hypothesis import strategies as st
from landreeve.release.layout import Packed, pack, read_folder
from landreeve.release.manifest import Column, Gates, Lineage, digest_of
from landreeve_hub.access.roles import Role
from landreeve_hub.registry.bill import Decision, Subject, bill_of, read_own, referrer_of

from tests.hub.hub_without_broker import Hub, push, release
from tests.models.tensor_releases import image_release

DECISION = Decision("ann", "bob", "2026-05-01T12:00:00Z")
LINEAGE = Lineage(
    run="r-17",
    site="EWR",
    dataset="d" * 64,
    dataset_rows=4_000,
    dataset_first="2026-01-01T00:00:00Z",
    dataset_last="2026-03-31T00:00:00Z",
    code="landreeve 0.1.0",
    recipe="boosting",
    configuration={"depth": 6, "learning_rate": 0.1, "seeds": [1, 2]},
    parent="e" * 64,
    reason="accuracy fell",
)
_VALIDATOR = JsonStrictValidator(SchemaVersion.V1_7)


def faults(data: bytes) -> Any:
    return _VALIDATOR.validate_str(data.decode())


def subject(packed: Packed, **config: Any) -> Subject:
    own = packed.manifest.layer("bom.json")
    return Subject(
        packed.digest,
        len(packed.manifest_bytes),
        "v3",
        msgspec.structs.replace(packed.config, **config),
        packed.manifest.layers,
        read_own(packed.file("bom.json")) if own else {},
    )


def test_bill_says_where_a_release_comes_from_and_is_valid() -> None:
    packed = release()
    columns = (Column(name="wind", kind="number", unit="kn"),)
    signature = msgspec.structs.replace(packed.config.signature, inputs=columns)
    data = bill_of(subject(packed, lineage=LINEAGE, signature=signature), DECISION)
    assert faults(data) is None
    bill = json.loads(data)
    model = bill["metadata"]["component"]
    assert (model["name"], model["version"], model["hashes"][0]["content"]) == ("delay", "v3", packed.digest)
    assert model["pedigree"]["ancestors"][0]["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    assert model["pedigree"]["commits"] == [{"uid": "landreeve 0.1.0"}]
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] == "0.5"
    dataset = next(one for one in bill["components"] if one["bom-ref"] == "dataset")
    assert dataset["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    training = bill["formulation"][0]["workflows"][0]
    assert training["uid"] == "r-17"
    assert {"name": "learning_rate", "value": "0.1"} in training["inputs"][1]["parameters"]
    told = {one["name"]: one["value"] for one in bill["metadata"]["properties"]}
    assert told == {"landreeve:approved_by": "bob", "landreeve:proposed_by": "ann"}
    files = {one["name"]: one["hashes"][0]["content"] for one in bill["components"] if one["type"] == "file"}
    assert files == {layer.path: layer.sha256 for layer in packed.manifest.layers}


def test_papers_of_a_reference_model_are_valid_and_its_licence_is_kept(tmp_path: Path) -> None:
    packed = read_folder(image_release(tmp_path / "r"))
    assert faults(packed.file("bom.json")) is None
    own = read_own(packed.file("bom.json"))
    own["metadata"]["component"]["licenses"] = [{"license": {"id": "Apache-2.0"}}, {"license": {"id": "MIT"}}]
    data = bill_of(with_own(subject(packed), own), DECISION)
    assert faults(data) is None
    licences = json.loads(data)["metadata"]["component"]["licenses"]
    assert licences == [{"expression": "Apache-2.0 AND MIT", "acknowledgement": "declared"}]


def with_own(of: Subject, own: Any) -> Subject:
    return Subject(of.digest, of.manifest_bytes, of.version, of.config, of.layers, own)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_LICENCE = st.dictionaries(st.sampled_from(["id", "name"]), _JSON)
_LICENCES = st.lists(st.fixed_dictionaries({"license": _LICENCE}) | _JSON)
_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("library"), "name": _JSON, "version": _JSON}) | _JSON)


@given(
    own=st.fixed_dictionaries(
        {"metadata": st.fixed_dictionaries({"component": st.fixed_dictionaries({"licenses": _LICENCES})}) | _JSON}
    )
    | st.fixed_dictionaries({"components": _PARTS | _JSON}),
    configuration=st.dictionaries(st.text(max_size=9), _JSON, max_size=3),
    words=st.text(max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_whatever_a_release_says_of_itself_the_bill_stays_valid(own: Any, configuration: Any, words: str) -> None:
    lineage = Lineage(run=words, dataset=words, code=words, parent=words, reason=words, configuration=configuration)
    packed = RELEASE
    data = bill_of(with_own(subject(packed, lineage=lineage, family=words), own), DECISION)
    assert faults(data) is None


RELEASE = release()


async def test_approval_makes_the_bill_and_it_is_found_by_its_release(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    packed = pack({"card.md": b"# card\n"}, msgspec.structs.replace(release().config, lineage=LINEAGE, gates=Gates()))
    async with await hub.person("ann", Role.ML_ENGINEER) as ann, await hub.person("bob", Role.APPROVER) as bob:
        digest = await push(ann, packed)
        url = f"/v2/delay/referrers/sha256:{digest}"
        assert (await ann.get(url)).json()["manifests"] == []
        assert (await ann.get(f"/api/v1/releases/{digest}/bom")).status_code == 404
        for approver in (bob, bob):  # a second time changes nothing but the moment
            assert (await approver.post(f"/api/v1/releases/{digest}/approve")).status_code == 200
        answer = await ann.get(url)
        assert answer.headers["content-type"] == "application/vnd.oci.image.index.v1+json"
        (found,) = answer.json()["manifests"]
        assert found["artifactType"] == "application/vnd.cyclonedx+json"
        manifest = await ann.get(f"/v2/delay/manifests/{found['digest']}")
        assert f"sha256:{digest_of(manifest.content)}" == found["digest"]
        assert manifest.json()["subject"]["digest"] == f"sha256:{digest}"
        (layer,) = manifest.json()["layers"]
        bill = (await ann.get(f"/v2/delay/blobs/{layer['digest']}")).content
        assert f"sha256:{digest_of(bill)}" == layer["digest"]
        assert faults(bill) is None
        assert (await ann.get(f"/v2/delay/blobs/{manifest.json()['config']['digest']}")).content == b"{}"
        assert (await ann.get("/api/v1/releases/delay:v1/bom")).content == bill
        assert (await ann.get("/api/v1/releases/delay/card")).text == "# card\n"
        filtered = await ann.get(f"{url}?artifactType=application/x")
        assert (filtered.json()["manifests"], filtered.headers["oci-filters-applied"]) == ([], "artifactType")
        own = await ann.get(url, params={"artifactType": found["artifactType"]})
        assert own.json() == answer.json()
    hub.store.close()


def test_referrer_is_the_same_for_the_same_decision() -> None:
    of = subject(RELEASE)
    assert referrer_of(of, bill_of(of, DECISION), DECISION.at) == referrer_of(of, bill_of(of, DECISION), DECISION.at)
    assert read_own(b"\xff") == read_own(b"[]") == read_own(b'{"bomFormat": "SPDX"}') == {}
