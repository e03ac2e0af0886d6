"""What the hub asks of a release of a tensor model before it may enter."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from landreeve.release.layout import Packed, pack, read_folder
from landreeve.release.manifest import BadReleaseError, ReleaseConfig
from landreeve_hub.registry.examine import examine

from tests.models.tensor_releases import image_graph, image_release, series_release, text_release


def repacked(packed: Packed, files: dict[str, bytes] | None = None, **config: Any) -> Packed:
    """The release with some files or members of its config replaced."""
    kept = {layer.path: packed.file(layer.path) for layer in packed.manifest.layers}
    changed: ReleaseConfig = msgspec.structs.replace(packed.config, blocks={}, **config)
    return pack(kept | (files or {}), changed)


async def examined(packed: Packed) -> Any:
    return await examine(packed.manifest_bytes, packed.blobs.__getitem__)


@pytest.mark.parametrize("write", [image_release, text_release, series_release])
async def test_every_kind_of_tensor_model_is_accepted(write: Any, tmp_path: Path) -> None:
    packed = read_folder(write(tmp_path / "release"))
    assert (await examined(packed)).config.signature.tensors == packed.config.signature.tensors


async def test_graph_of_another_model_is_refused(tmp_path: Path) -> None:
    packed = read_folder(text_release(tmp_path / "release"))
    with pytest.raises(BadReleaseError, match="inputs are 'image', the definition names 'input_ids', 'attention_mask'"):
        await examined(repacked(packed, {"model.onnx": image_graph()}))


async def test_config_that_contradicts_the_definition_is_refused(tmp_path: Path) -> None:
    packed = read_folder(image_release(tmp_path / "release"))
    other = read_folder(text_release(tmp_path / "other")).config.signature
    tabular = msgspec.structs.replace(packed.config.signature, tensors=(), outputs=(), width=6)
    for signature in (other, tabular):
        with pytest.raises(
            BadReleaseError, match=r"definition\.json: its tensors are not those of the release's config"
        ):
            await examined(repacked(packed, signature=signature))


async def test_definition_that_is_none_is_refused_with_its_reason(tmp_path: Path) -> None:
    packed = read_folder(image_release(tmp_path / "release"))
    wrong = msgspec.json.decode(packed.file("definition.json")) | {"task": "poetry"}
    with pytest.raises(BadReleaseError, match=r"definition\.json: task 'poetry' is unknown"):
        await examined(repacked(packed, {"definition.json": msgspec.json.encode(wrong)}))
