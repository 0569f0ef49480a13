"""Options say what is wrong with them before anything is started."""

import math
from typing import Any

import attrs
import pytest

from trioswitch import Options, RoomPolicy

FIELDS = [
    (kind, field)
    for kind in (Options, RoomPolicy)
    for field in attrs.fields(kind)
    if type(field.default) in (bool, int, float) or field.name in ("history_age", "max_connections")
]


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=[field.name for _kind, field in FIELDS])
def test_an_option_takes_what_its_default_is(kind: Any, field: Any) -> None:
    kind(**{field.name: field.default})
    wrong: list[Any] = ["1", [1], 1j]
    if isinstance(field.default, bool):
        wrong += [1, 0.0, None]
    else:
        wrong += [True, math.nan]
    if isinstance(field.default, int) or field.name == "max_connections":
        wrong += [1.5, math.inf]
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"^'{field.name}' must be "):
            kind(**{field.name: value})


def test_whole_numbers_are_seconds_too() -> None:
    assert Options(ping_interval=5, linger=0).ping_interval == 5
    assert RoomPolicy(history_age=60).history_age == 60


def test_policies_are_what_the_type_says() -> None:
    policy = RoomPolicy(history="memory")
    assert Options(policies=policy).policies == Options(policies=[policy]).policies == (policy,)
    with pytest.raises(TypeError, match="policies"):
        Options(policies=["lobby"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="'disk' is not one of none, memory, stored"):
        RoomPolicy(history="disk")
    with pytest.raises(ValueError, match="'never' is not one of block, drop_oldest"):
        RoomPolicy(overflow="never")
