"""No client protocol at all: messages of an endpoint of the application's own, text as text and binary as binary."""

from ..commands import Command
from ..websocket import TextBytes
from .json import JSON_CODEC
from .port import ClientProtocol

__all__ = ["RAW", "RawMessage"]


class RawMessage(Command, kw_only=True):
    """A message from the client: a str for text, bytes for binary."""

    data: str | bytes


class RawProtocol(ClientProtocol):
    """Takes every message as it is."""

    def decode(self, payload: bytes) -> RawMessage:
        return RawMessage(data=payload.decode() if isinstance(payload, TextBytes) else payload)


RAW = RawProtocol("", JSON_CODEC, batches=False)
"""The codec is that of the control messages, of which there are none; `wire.raw` frames the data."""
