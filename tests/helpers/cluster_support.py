"""What clients of a cluster in memory receive."""

from collections.abc import Sequence

from trioswitch.testing import MemoryClient

__all__ = ["texts"]


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
