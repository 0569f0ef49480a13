"""Formats: what the bytes for a connection look like. Connections with the same format share every encoded byte."""

import attrs

from .frames import BINARY, TEXT, Compressor, frame
from .protocols.port import ClientProtocol, Codec

__all__ = ["Chunk", "Format", "Formats", "Framing", "Payload", "size_of"]

Payload = bytes | str
Chunk = bytes | tuple[Payload, ...]
"""What one write takes: frames joined into bytes, or the payloads, for a transport that frames by itself."""


@attrs.frozen(eq=False)
class Framing:
    """From an encoded message to the bytes of its frame."""

    codec: Codec
    framed: bool
    """False for a transport that takes payloads and frames them by itself."""
    deflate_bits: int
    """The window size that the client negotiated for permessage-deflate, 0 without."""
    compressor: Compressor

    def frame(self, payload: bytes, *, compress: bool = True, text: bool | None = None) -> Payload:
        """The frame of a payload; `text` says what it is where the codec does not."""
        text = self.codec.text if text is None else text
        if not self.framed:
            return payload.decode() if text else payload
        opcode = TEXT if text else BINARY
        if self.deflate_bits and compress and (data := self.compressor.deflate(payload, self.deflate_bits)) is not None:
            return frame(opcode, data, compressed=True)
        return frame(opcode, payload)


@attrs.frozen(eq=False)
class Format:
    """What the bytes for a connection look like. Connections that share a Format share every encoded byte."""

    protocol: ClientProtocol
    framing: Framing
    batch_messages: int
    batch_bytes: int


def size_of(chunk: Chunk | memoryview) -> int:
    """The bytes in a chunk."""
    return sum(map(len, chunk)) if isinstance(chunk, tuple) else len(chunk)


class Formats:
    """The one Format object for each combination of protocol, framing and compression window.

    `batch_messages` and `batch_bytes` bound the batch envelopes of protocols that have them.
    """

    def __init__(self, compressor: Compressor, batch_messages: int, batch_bytes: int) -> None:
        self.compressor = compressor
        self._batch_messages = batch_messages
        self._batch_bytes = batch_bytes
        self._framings: dict[tuple[Codec, bool, int], Framing] = {}
        self._formats: dict[tuple[ClientProtocol, Framing], Format] = {}

    def get(self, protocol: ClientProtocol, *, framed: bool, deflate_bits: int) -> Format:
        """The format of a connection; `framed` and `deflate_bits` as in `Framing`."""
        choice = (protocol.codec, framed, deflate_bits)
        framing = self._framings.get(choice)
        if framing is None:
            framing = self._framings[choice] = Framing(protocol.codec, framed, deflate_bits, self.compressor)
        format = self._formats.get((protocol, framing))
        if format is None:
            format = Format(protocol, framing, self._batch_messages, self._batch_bytes)
            self._formats[protocol, framing] = format
        return format
