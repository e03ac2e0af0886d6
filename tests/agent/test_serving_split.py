"""Shares of a model's traffic: even, sticky by key, and only ever growing for those who are in."""

import itertools

from hypothesis import given
from hypothesis import strategies as st
from landreeve_agent.serving.split import pick, point


@given(st.text(min_size=1, max_size=80), st.text(max_size=200))
def test_a_key_always_lies_at_the_same_place(model: str, key: str) -> None:
    assert 0 <= point(model, key) < 1
    assert point(model, key) == point(model, key)


def test_keys_spread_evenly_and_independently_of_other_models() -> None:
    delay = [point("delay", f"customer-{i}") for i in range(20_000)]
    price = [point("price", f"customer-{i}") for i in range(20_000)]
    for first, last in itertools.pairwise([0, 0.1, 0.35, 0.5, 1]):
        assert abs(sum(first <= at < last for at in delay) / 20_000 - (last - first)) < 0.015  # five standard errors
    both = sum(a < 0.5 and b < 0.5 for a, b in zip(delay, price, strict=True)) / 20_000
    assert abs(both - 0.25) < 0.015


@given(st.lists(st.floats(0, 0.3), max_size=3), st.floats(0, 1, exclude_max=True), st.floats(0, 0.1))
def test_a_first_share_that_grows_keeps_everyone_it_had(shares: list[float], at: float, more: float) -> None:
    if shares and pick(shares, at) == 0:
        assert pick([shares[0] + more, *shares[1:]], at) == 0


@given(st.lists(st.floats(0, 0.3), max_size=3), st.floats(0, 1, exclude_max=True))
def test_what_no_share_covers_is_the_active_versions(shares: list[float], at: float) -> None:
    assert (pick(shares, at) == -1) == (at >= sum(shares) - 1e-12)
