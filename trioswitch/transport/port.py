"""The interface between a connection and what carries it."""

import abc
from collections.abc import Callable

from ..wire.formats import Chunk, Format

__all__ = ["Receiver", "Transport"]


Receiver = Callable[[list[bytes]], list[bytes] | None]
"""Carries out messages. Returns None when all are done; else what is left after a command that has to wait."""


class Transport(abc.ABC):
    """One WebSocket that is open. One task reads from it, and one at a time writes to it."""

    format: Format
    """What the bytes for it look like."""
    write_nowait: Callable[[bytes], int] | None = None
    """Writes what fits of a chunk and returns how many bytes that was, where the transport can do so without waiting.

    Raises BlockingIOError when none fits, another OSError when the connection is gone. Must not be called after `aclose`.
    """

    @abc.abstractmethod
    async def receive(self) -> list[bytes]:
        """The messages that have arrived, in order; waits for at least some data, and may return none.

        Raises PeerGone when the connection is over. Safe to cancel.
        """

    def set_receiver(self, receiver: "Receiver") -> None:  # noqa: B027  # most transports have nothing to do
        """Let `receiver` have messages as they arrive, where that needs no waking of the task that receives.

        What it leaves comes out of `receive`.
        """

    @abc.abstractmethod
    def pongs(self) -> bytes:
        """Answers to the peer's pings in what `receive` returned last, for the outbox to write."""

    @abc.abstractmethod
    async def write(self, chunk: Chunk | memoryview) -> None:
        """Write a chunk whole. Raises PeerGone. When it is cancelled the connection is over: half a frame may be out."""

    @abc.abstractmethod
    async def wait_writable(self) -> None:
        """Wait until a write will probably not have to wait. Raises PeerGone. Safe to cancel."""

    @abc.abstractmethod
    def ping(self) -> bytes | None:
        """A ping's bytes for the outbox to write, or None where it was sent, or will be, without the outbox."""

    @abc.abstractmethod
    async def send_close(self, code: int, reason: str) -> None:
        """Write a close frame, or the answer to the peer's; nothing may be written after it. Raises PeerGone."""

    @abc.abstractmethod
    async def wait_closed(self) -> None:
        """Read, and throw away, what still comes until the peer has closed its side too. Raises PeerGone. Safe to cancel."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close what carries the connection, at once. Never fails, and closes even when it is cancelled."""
