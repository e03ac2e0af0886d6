"""One pipeline for training and serving: the same row is the same numbers everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.release.manifest import BadReleaseError, Column
from landreeve_models.definition import Definition
from landreeve_models.features.pipeline import Pipeline

DEFINITION = Definition(
    name="m",
    purpose="p",
    label="y",
    columns=(
        Column(name="kind", kind="category"),
        Column(name="size", kind="number"),
        Column(name="age", kind="number", required=False),
    ),
)
ROWS = [{"kind": k, "size": i, "age": None if i % 3 else float(i)} for i, k in enumerate("aabbbccccc" * 20)]
LABELS = [1.0 if row["kind"] == "b" else float(i % 2) for i, row in enumerate(ROWS)]
PIPELINE = Pipeline.fit(ROWS, LABELS, DEFINITION)

rows = st.lists(
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["a", "b", "c", "never seen"]), "size": st.floats(-1e6, 1e6)},
        optional={"age": st.none() | st.floats(0, 100)},
    ),
    min_size=1,
    max_size=20,
)


@given(rows)
def test_rows_columns_and_the_reloaded_pipeline_agree_bit_for_bit(some) -> None:
    whole = PIPELINE.encode(some)
    columns = {name: [row.get(name) for row in some] for name in ("kind", "size", "age")}
    reloaded = Pipeline.from_bytes(PIPELINE.to_bytes())
    assert whole.dtype == np.float32
    assert whole.shape == (len(some), 3)
    np.testing.assert_array_equal(whole, PIPELINE.encode_columns(columns, len(some)))
    np.testing.assert_array_equal(whole, reloaded.encode(some))
    np.testing.assert_array_equal(whole[:1], PIPELINE.encode(some[:1]))


def test_rank_follows_the_label_rate_and_unseen_is_unknown() -> None:
    ranks = PIPELINE.ranks["kind"]
    assert ranks["b"] == 2.0
    x = PIPELINE.encode([{"kind": "z", "size": 1}])
    assert np.isnan(x[0]).tolist() == [True, False, True]


def test_absent_column_is_unknown_throughout_and_arrays_are_taken_as_they_are() -> None:
    x = PIPELINE.encode_columns({"kind": ["a", "b"], "size": np.array([1.0, 2.0])}, 2)
    assert np.isnan(x[:, 2]).all()
    assert x[:, 1].tolist() == [1.0, 2.0]


def test_same_rows_give_the_same_bytes_whatever_their_order() -> None:
    order = np.random.default_rng(1).permutation(len(ROWS))
    shuffled = Pipeline.fit([ROWS[i] for i in order], [LABELS[i] for i in order], DEFINITION)
    assert shuffled.to_bytes() == PIPELINE.to_bytes()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"version":2,"columns":[],"categories":{}}', b"\xff"])
def test_bytes_that_are_no_pipeline_are_refused(data: bytes) -> None:
    with pytest.raises(BadReleaseError, match=r"features\.json"):
        Pipeline.from_bytes(data)


def test_category_without_ranks_is_refused() -> None:
    data = b'{"columns":[{"name":"a","kind":"category"}],"categories":{}}'
    with pytest.raises(BadReleaseError, match="no ranks"):
        Pipeline.from_bytes(data)
