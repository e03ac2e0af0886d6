"""The encoder's graph against torch's own encoder with the same weights."""

import numpy as np
import pytest
import torch
from landreeve_models.inference import run_graph
from landreeve_models.recipes.transformer import BadWeightsError, Shape, encoder

from tests.models.tensor_releases import HIDDEN, text_weights, texts

HEADS = 4


def torchs(weights: dict[str, np.ndarray], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What torch's TransformerEncoder makes of the same weights, pooled and of length one."""
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    x = w["embeddings.word_embeddings.weight"][torch.from_numpy(ids)]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]] + w["embeddings.token_type_embeddings.weight"][0]
    norm = ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias")
    x = torch.nn.functional.layer_norm(x, (HIDDEN,), w[norm[0]], w[norm[1]], 1e-12)
    padding = torch.from_numpy(mask) == 0
    for number in range(2):
        layer = torch.nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, 0.0, "gelu", 1e-12, batch_first=True)
        layer.load_state_dict(_state(w, f"encoder.layer.{number}"))
        x = layer(x, src_key_padding_mask=padding)
    kept = torch.from_numpy(mask).float()[:, :, None]
    mean = (x * kept).sum(1) / kept.sum(1)
    return torch.nn.functional.normalize(mean, dim=1).detach().numpy()


def _state(w: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    def joined(part: str) -> torch.Tensor:
        return torch.cat([w[f"{name}.attention.self.{which}.{part}"] for which in ("query", "key", "value")])

    state = {"self_attn.in_proj_weight": joined("weight"), "self_attn.in_proj_bias": joined("bias")}
    for theirs, ours in (
        ("self_attn.out_proj", "attention.output.dense"),
        ("linear1", "intermediate.dense"),
        ("linear2", "output.dense"),
        ("norm1", "attention.output.LayerNorm"),
        ("norm2", "output.LayerNorm"),
    ):
        state |= {f"{theirs}.{part}": w[f"{name}.{ours}.{part}"] for part in ("weight", "bias")}
    return state


def test_graph_gives_what_torch_gives_for_the_same_weights() -> None:
    weights = text_weights()
    (ids, mask), _ = texts(30, 5)
    found = run_graph(encoder(weights, Shape(heads=HEADS)), [ids, mask])[0]
    np.testing.assert_allclose(found, torchs(weights, ids, mask), atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_padding_and_the_length_of_neighbours_change_nothing() -> None:
    graph = encoder(text_weights(), Shape(heads=HEADS))
    (ids, mask), _ = texts(6, 6)
    long = [np.pad(array, ((0, 0), (0, 20))) for array in (ids, mask)]
    long[0][:, ids.shape[1] :] = 77  # what stands behind the mask is nobody's business
    np.testing.assert_allclose(run_graph(graph, [ids, mask])[0], run_graph(graph, long)[0], atol=1e-6)


def test_text_of_no_token_is_answered_with_zeros_and_not_with_nan() -> None:
    graph = encoder(text_weights(), Shape(heads=HEADS))
    none = np.zeros((1, 8), np.int64)
    assert run_graph(graph, [none, none])[0].tolist() == [[0.0] * HIDDEN]


def test_the_same_weights_give_the_same_bytes() -> None:
    assert encoder(text_weights(), Shape(heads=HEADS)) == encoder(text_weights(), Shape(heads=HEADS))


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"])
def test_missing_weight_is_named(name: str) -> None:
    weights = text_weights()
    del weights[name]
    with pytest.raises(BadWeightsError, match=name):
        encoder(weights, Shape(heads=HEADS))
