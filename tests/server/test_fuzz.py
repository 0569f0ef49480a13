"""Hostile input costs time and memory in proportion to its size: a minute of the fuzzer (`benchmarks/fuzz.py`)."""

from typing import Final

import pytest
from fuzz import NAMES, fuzz

pytestmark = pytest.mark.slow

SECONDS: Final = 60 / len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_above_the_bound(name: str) -> None:
    count, faults = fuzz(name, SECONDS, 0)
    assert count > 2
    assert not faults, "\n".join(faults)
