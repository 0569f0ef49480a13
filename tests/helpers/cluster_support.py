"""What clients of a cluster in memory receive."""

from collections.abc import Sequence

import trio_websocket

from trioswitch.testing import MemoryClient

__all__ = ["closing", "texts"]


async def texts(client: MemoryClient, count: int) -> Sequence[str]:
    """The next messages of a client, and its gaps."""
    found: list[str] = []
    while len(found) < count:
        message = await client.receive()
        if message["type"] in ("chat_message", "message"):
            found.append(message["content"] if "content" in message else message["data"])
        elif message["type"] == "gap":
            found.append("gap")
    return found


async def closing(client: MemoryClient) -> tuple[int, str]:
    """Code and reason with which the server closes the connection."""
    reason = None
    while reason is None:
        try:
            await client.receive()
        except trio_websocket.ConnectionClosed as closed:
            reason = closed.reason
    return reason.code, reason.reason or ""
