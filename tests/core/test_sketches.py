"""Sketches: merging equals sketching the whole, and small groups stay on the site."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from landreeve.sketch.categories import Categories
from landreeve.sketch.divergence import psi
from landreeve.sketch.document import from_document, merge
from landreeve.sketch.errors import BadSketchError, UnlikeSketchesError
from landreeve.sketch.histogram import Histogram
from landreeve.sketch.moments import Moments

numbers = st.lists(st.none() | st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, math.nan]), max_size=60)
words = st.lists(st.none() | st.sampled_from(["a", "b", "c", "ü", ""]), max_size=60)


@given(numbers, numbers, numbers, st.integers(1, 40))
def test_merged_histograms_equal_the_histogram_of_everything(reference, a, b, bins) -> None:
    empty = Histogram.fit(reference, bins).empty()
    assert empty.add(a).merge(empty.add(b)) == empty.add(a + b)
    assert empty.add(a).rows == len(a)


@given(words, words, words, st.integers(0, 4))
def test_merged_categories_equal_the_categories_of_everything(reference, a, b, top) -> None:
    empty = Categories.fit(reference, top).empty()
    assert empty.add(a).merge(empty.add(b)) == empty.add(a + b)
    assert empty.add(a).rows == len(a)


@given(st.lists(st.floats(-1e3, 1e3)), st.lists(st.floats(-1e3, 1e3)))
def test_merged_moments_equal_the_moments_of_everything(a, b) -> None:
    merged, whole = Moments().add(a).merge(Moments().add(b)), Moments().add(a + b)
    assert merged.n == whole.n
    assert merged.mean == pytest.approx(whole.mean, abs=1e-6)
    assert merged.m2 == pytest.approx(whole.m2, rel=1e-6, abs=1e-3)


@given(numbers, st.integers(1, 32), st.integers(1, 12))
def test_every_reference_bin_holds_at_least_k_values(values, bins, k) -> None:
    made = Histogram.fit(values, bins, k)
    assert len(made.counts) <= max(bins, 1)
    assert len(made.counts) == 1 or min(made.counts) >= k
    assert made.missing == 0 or made.missing >= k


@given(numbers, st.integers(1, 12))
def test_withheld_groups_leave_only_their_sum(values, k) -> None:
    whole = Histogram.fit(values, 8)
    told = whole.withhold(k)
    assert all(count == 0 or count >= k for count in told.cells())
    assert told.rows == whole.rows


@given(words, st.integers(1, 12))
def test_withheld_categories_leave_only_their_sum(values, k) -> None:
    whole = Categories.fit(values)
    told = whole.withhold(k)
    assert all(count == 0 or count >= k for count in told.cells())
    assert told.rows == whole.rows


@given(numbers, words)
def test_documents_round_trip_and_merge_like_their_sketches(values, texts) -> None:
    for sketch in (Histogram.fit(values, 8), Categories.fit(texts), Moments(2, 1.0, 0.5)):
        document = sketch.to_document()
        assert from_document(document) == sketch
        assert from_document(merge(document, document)) == sketch.merge(sketch)  # type: ignore[arg-type]


def test_sketches_of_different_references_never_merge() -> None:
    with pytest.raises(UnlikeSketchesError):
        Histogram((1.0,), (0, 0)).merge(Histogram((2.0,), (0, 0)))
    with pytest.raises(UnlikeSketchesError):
        merge(Histogram((1.0,), (0, 0)).to_document(), Moments().to_document())
    with pytest.raises(UnlikeSketchesError):
        psi(Histogram((), (1,)), Categories((), ()))


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (None, "object"),
        ({"kind": "kll"}, "kind 'kll'"),
        ({"kind": "histogram", "edges": [1.0], "counts": [1], "missing": 0}, "one count more"),
        ({"kind": "histogram", "edges": [2.0, 1.0], "counts": [1, 1, 1], "missing": 0}, "rise"),
        ({"kind": "histogram", "edges": [], "counts": [-1], "missing": 0}, "below zero"),
        ({"kind": "histogram", "edges": "x", "counts": [], "missing": 0}, "histogram"),
        ({"kind": "categories", "values": ["a", "a"], "counts": [1, 1], "other": 0, "missing": 0}, "distinct"),
        ({"kind": "moments", "n": 1, "mean": 0.0, "m2": float("nan")}, "m2"),
    ],
)
def test_documents_that_are_no_sketch_are_named(document, named) -> None:
    with pytest.raises(BadSketchError, match=named):
        from_document(document)


def test_psi_of_equal_shares_is_zero_and_grows_with_the_change() -> None:
    reference = Histogram((0.0, 1.0), (100, 100, 100))
    near, far = Histogram((0.0, 1.0), (90, 100, 110)), Histogram((0.0, 1.0), (10, 100, 190))
    assert psi(reference, Histogram((0.0, 1.0), (100, 100, 100))) == 0
    assert 0 < psi(reference, near) < psi(reference, far)


def test_a_column_gone_missing_is_a_change() -> None:
    reference = Histogram.fit([float(i) for i in range(1000)])
    assert psi(reference, reference.empty().add([None] * 500)) > 1
