"""What a program tells Python about its garbage."""

import gc

from trioswitch._util.process import RARELY, collect_rarely


def test_only_full_collections_are_rarer() -> None:
    before = gc.get_threshold()
    try:
        collect_rarely()
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] in (RARELY, before[2])  # where collecting is incremental, it is not to be set
    finally:
        gc.set_threshold(*before)
