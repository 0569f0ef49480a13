"""Durations and sizes, as people write them."""

import math
import re
from typing import Final

__all__ = ["duration", "size"]

_DURATIONS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_FORM: Final = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)")


def duration(value: object) -> float:
    """Seconds: a number of them, or text such as `250ms`, `10s`, `5m`, `1h`, `7d`. Raises ValueError with a sentence."""
    seconds = _parse(value, _DURATIONS, 1.0)
    if seconds is None or not math.isfinite(seconds):
        raise ValueError(f'must be a duration, such as 10, "250ms", "5m", "1h" or "7d", not {value!r}')
    return seconds


def size(value: object) -> int:
    """Bytes: a number of them, or text such as `64KiB` (65,536) or `1MB` (1,000,000). Raises ValueError with a sentence."""
    number = _parse(value, _SIZES, 1)
    if number is None or number != int(number):
        raise ValueError(f'must be a number of bytes, such as 65536, "64KiB" or "1MB", not {value!r}')
    return int(number)


def _parse(value: object, units: "dict[str, float] | dict[str, int]", unit: float) -> float | None:
    if isinstance(value, str) and (found := _FORM.fullmatch(value.strip())):
        number, name = found.groups()
        factor = unit if not name else units.get(name)
        return None if factor is None else float(number) * factor
    if isinstance(value, str | bool) or not isinstance(value, int | float):
        return None
    return float(value)
