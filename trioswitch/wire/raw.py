"""A message of an endpoint of the application's own, on its way to the client."""

from .formats import Framing, Payload
from .messages import Event
from .prepared import Prepared
from .protocols.port import Codec

__all__ = ["RawPrepared"]


class RawPrepared(Prepared):
    """Text or binary data, sent as it is."""

    __slots__ = ("_data", "_text")

    def __init__(self, data: str | bytes) -> None:
        self._text = isinstance(data, str)
        self._data = data.encode() if isinstance(data, str) else data
        super().__init__(Event(), size=len(self._data))

    def payload(self, codec: Codec) -> bytes:
        return self._data

    def frame(self, framing: Framing) -> Payload:
        return framing.frame(self._data, text=self._text)
