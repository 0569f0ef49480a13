"""The value of `--room`: PATTERN:KEY=VALUE,... becomes a RoomPolicy.

cattrs structures the texts of the values by the types of the policy's fields: a new field of `RoomPolicy` is a new key here.
"""

import argparse
from typing import Any, Final

import attrs
import cattrs
from cattrs.errors import ClassValidationError

from ..config import HistoryStorage, Overflow, RoomPolicy, one_of

__all__ = ["room_policy"]

FORM: Final = "PATTERN:KEY=VALUE,..."
KEYS: Final = [field.name for field in attrs.fields(RoomPolicy) if field.name != "pattern"]


def _flag(text: str, _type: object) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{text!r} is not yes or no")
    return text == "yes"


def _whole(text: str, _type: object) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str, _type: object) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


_converter: Final = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(bool, _flag)
_converter.register_structure_hook(int, _whole)
_converter.register_structure_hook(float, _number)
_converter.register_structure_hook(float | None, _number)
_converter.register_structure_hook(Overflow, lambda text, _type: one_of(Overflow, text))
_converter.register_structure_hook(HistoryStorage, lambda text, _type: one_of(HistoryStorage, text))


def room_policy(text: str) -> RoomPolicy:
    """Raises argparse.ArgumentTypeError with a sentence that says what is wrong, and what is allowed."""
    pattern, _, rest = text.rpartition(":")
    values: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        name = key.strip().replace("-", "_")
        if not equals:
            raise argparse.ArgumentTypeError(f"{text!r} is not {FORM}")
        if name not in KEYS:
            keys = ", ".join(KEYS).replace("_", "-")
            raise argparse.ArgumentTypeError(f"unknown key {key!r} in {text!r}: there are {keys}")
        if name in values:
            raise argparse.ArgumentTypeError(f"{key} stands twice in {text!r}")
        spelled[name] = key.strip()
        values[name] = value.strip()
    if not pattern or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not {FORM}")
    try:
        return _converter.structure({"pattern": pattern, **values}, RoomPolicy)
    except ClassValidationError as invalid:
        raise argparse.ArgumentTypeError(_sentence(text, invalid, spelled)) from None


def _sentence(text: str, invalid: ClassValidationError, spelled: dict[str, str]) -> str:
    """What is wrong with the first field that is not valid."""
    with_notes, without = invalid.group_exceptions()
    if with_notes:
        error, note = with_notes[0]
        return f"{spelled[note.name]} in {text!r}: {error}"
    name, sentence = _first(without).args[0].split(" ", 1)  # a validator's: see `config.option`
    return f"{spelled[name[1:-1]]} in {text!r}: {sentence}"


def _first(errors: Any) -> Exception:
    error: Exception = errors[0]
    return error
