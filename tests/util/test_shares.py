"""Shares of a common budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioswitch._util.shares import Shares


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 1000), st.booleans()), max_size=60))
def test_amounts_add_up_and_the_largest_is_within_a_factor_of_two(steps: list[tuple[str, int, bool]]) -> None:
    shares, model = Shares[str](), dict[str, int]()
    for holder, amount, gives_back in steps:
        change = -min(amount, model.get(holder, 0)) if gives_back else amount
        shares.add(holder, change)
        model[holder] = model.get(holder, 0) + change
        held = {name: amount for name, amount in model.items() if amount}
        assert shares.total == sum(held.values())
        assert len(shares) == len(held)
        assert all(shares[name] == model.get(name, 0) for name in "abcdefgh")
        if held:
            assert held[shares.largest()] * 2 > max(held.values())


def test_of_equal_holders_the_newest_is_spared() -> None:
    shares = Shares[str]()
    for holder in "abc":
        shares.add(holder, 5)
    assert shares.largest() == "a"
    shares.add("a", -4)
    shares.add("a", 4)
    assert shares.largest() == "b"


def test_of_nobody_there_is_no_largest() -> None:
    shares = Shares[str]()
    with pytest.raises(ValueError, match="empty"):
        shares.largest()
    shares.add("a", 1)
    shares.add("a", -1)
    with pytest.raises(ValueError, match="empty"):
        shares.largest()
