"""One hostile client costs only itself: attacks on a real server, with default limits unless they say otherwise.

The bound is 100 ms on a quiet machine (`benchmarks/attacks.py` measures it). These tests run beside others, on any machine: a
server that stops answering for two seconds has a fault.
"""

import pytest
from attacks import ATTACKS, attack

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_answered_and_memory_is_bounded(name: str) -> None:
    result = attack(ATTACKS[name])
    assert result.during - result.before < 2.0
    assert result.memory < ATTACKS[name].allowed
