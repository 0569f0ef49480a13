"""Nurseries whose body may fail without a group around its exception."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

__all__ = ["open_nursery", "without_group"]


Result = TypeVar("Result")


async def without_group(work: Awaitable[Result]) -> Result:
    """Await the application's code. An exception that it raised in a nursery, alone, comes out without the groups around it."""
    try:
        return await work
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            (error,) = error.exceptions
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from group


@asynccontextmanager
async def open_nursery() -> AsyncIterator[trio.Nursery]:
    """As `trio.open_nursery`, but what the block itself raises comes out as it is, where no task has raised as well."""
    own: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                own = error
                raise
    except BaseExceptionGroup as group:
        if group.exceptions != (own,):
            raise
    else:
        return
    assert own is not None
    raise own
