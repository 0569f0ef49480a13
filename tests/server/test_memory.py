"""What a program tells Python about its garbage."""

import gc

from trioswitch._util.process import MIDDLE, OLD, YOUNG, collect_rarely


def test_collections_are_rarer_and_a_full_one_looks_at_many_times_the_objects_of_the_others() -> None:
    before = gc.get_threshold()
    try:
        collect_rarely()
        young, middle, old = gc.get_threshold()
        assert (young, middle) == (YOUNG, MIDDLE)
        assert old in (OLD, before[2])  # where collecting is incremental, it is not to be set
        assert YOUNG * MIDDLE * OLD > 1_000_000
    finally:
        gc.set_threshold(*before)
