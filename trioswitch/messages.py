"""The events that clients receive: what a handler, a subscription or a custom `data` may send, and what histories hold.

An event can be given as `data` to whatever publishes or sends: then it goes out as it is.
"""

from .wire.messages import (
    ChatMessage,
    DirectMessage,
    Event,
    Gap,
    GroupMessage,
    Message,
    Position,
    Published,
    Recorded,
    System,
)

__all__ = [
    "ChatMessage",
    "DirectMessage",
    "Event",
    "Gap",
    "GroupMessage",
    "Message",
    "Position",
    "Published",
    "Recorded",
    "System",
]
