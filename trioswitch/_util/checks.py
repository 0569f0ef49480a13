"""Checks of arguments that applications pass. Each raises TypeError or ValueError with a sentence that names the argument."""

import inspect
from collections.abc import Iterable

import trio

__all__ = [
    "carried_text",
    "check_async",
    "check_in_trio",
    "check_integer",
    "check_iterable",
    "check_seconds",
    "check_text",
]


def check_text(what: str, text: object, longest: int) -> None:
    """`what` must be a str of 1 to `longest` bytes in UTF-8."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, not {type(text).__name__}")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} must be text that UTF-8 can carry, not {text!a}") from None
    if not 1 <= size <= longest:
        raise ValueError(f"{what} must have 1 to {longest} bytes in UTF-8, not {size}")


def carried_text(text: str) -> str:
    """The text as UTF-8 can carry it: lone surrogates are replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_integer(what: str, value: object, least: int, most: int) -> None:
    """`what` must be an int from `least` to `most`."""
    if type(value) is not int:
        raise TypeError(f"{what} must be an integer from {least} to {most}, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be an integer from {least} to {most}, not {value}")


def check_seconds(what: str, value: object) -> None:
    """`what` must be a number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, 0 or more, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{what} must be a number of seconds, 0 or more, not {value!r}")


def check_iterable(what: str, values: object, of: str, *kinds: type) -> None:
    """`what` must be a collection of objects of these kinds, and not a single str."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be an iterable of {of}, not {values!r}")
    for value in values:
        if not isinstance(value, kinds):
            raise TypeError(f"{what} must contain {of}, not {value!r}")


def check_async(what: str, function: object) -> None:
    """`what` must be an async function, or an object whose `__call__` is one."""
    call = getattr(function, "__call__", None)  # noqa: B004  # it is asked for the function, not whether there is one
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)):
        raise TypeError(f"{what} must be an async function, not {function!r}")


def check_in_trio() -> None:
    """Raises RuntimeError outside of `trio.run`, in asyncio say."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        raise RuntimeError(
            "trioswitch runs on Trio: start the program with trio.run(main), not asyncio.run(main())"
        ) from None
