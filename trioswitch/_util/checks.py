"""Checks of arguments that applications pass. Each raises TypeError or ValueError with a sentence that names the argument."""

import inspect

import trio

__all__ = ["check_async", "check_in_trio", "check_text"]


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
