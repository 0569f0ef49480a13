"""Nurseries whose body may fail without a group around its exception."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["open_nursery"]


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
