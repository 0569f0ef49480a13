"""Client protocols: bytes <-> messages. One object for each; nothing outside `wire/` knows which one a client speaks.

msgspec decodes a command straight into the class that its `type` names: 0.2 us for a chat message of 140 bytes. Fields that the
command does not have are skipped, and the body of a message stays as it is (`wire.body`), so that decoding takes time and memory
in proportion to the bytes. Events are encoded straight from their attrs classes in 0.25 us.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Union

import attrs
import msgspec
from msgspec import UNSET, Raw

from ...errors import BadInput, CloseCause, UnencodableData
from ..body import UNENCODABLE, Body
from ..commands import COMMANDS, Command, Custom, ProtocolCommand, SendChat, SendDirect, SendGroup, SendMessage
from ..messages import Event

__all__ = ["INVALID", "PROTOCOL_COMMAND", "ClientProtocol", "Codec", "Head"]

INVALID = (ValueError, RecursionError, TypeError)
"""What decoding raises for bytes that cannot be decoded. (msgspec's errors are ValueErrors.)"""
PROTOCOL_COMMAND: Any = Union[tuple(COMMANDS.values())]  # noqa: UP007  # made of a table


class Head(msgspec.Struct):
    """Three fields of a message that is not a command of the protocol. One that is not text, an integer or null is Raw."""

    type: str | int | Raw | None = None
    id: str | int | Raw | None = None
    room: str | int | Raw | None = None


class Codec(ABC):
    """One encoding of messages: every protocol that shares it shares the encoded bytes."""

    name: ClassVar[str]
    text: ClassVar[bool]
    """Whether its bytes go into text frames."""

    # --- what clients send: all methods raise one of INVALID

    @abstractmethod
    def decode(self, payload: bytes) -> ProtocolCommand:
        """A command of the client protocol. Its body has yet to be checked."""

    @abstractmethod
    def text_body(self, raw: Raw) -> Body:
        """The body of a message that must be text."""

    @abstractmethod
    def data_body(self, raw: Raw) -> Body:
        """The body of a message that may be anything which receivers can decode."""

    @abstractmethod
    def head(self, payload: bytes) -> Head:
        """A message that is not a valid command."""

    def find_id(self, payload: bytes) -> str | int | None:
        """The `id` of a message that is nested too deeply for `head`, where it can be found."""
        return None

    @abstractmethod
    def fields(self, payload: bytes) -> dict[str, Any]:
        """All that a message contains, as Python objects."""

    # --- what the server sends

    @abstractmethod
    def encode_event(self, event: Event) -> bytes:
        """The event's bytes. Raises one of UNENCODABLE."""

    @abstractmethod
    def batch(self, payloads: Sequence[bytes], timestamp: str) -> bytes:
        """A `batch` envelope around messages that are encoded already."""

    def encode(self, event: Event) -> bytes:
        """The event's bytes. Raises UnencodableData."""
        try:
            return self.encode_event(event)
        except UNENCODABLE as error:
            raise UnencodableData(f"cannot be written as {self.name}: {error}") from None


@attrs.frozen(eq=False)
class ClientProtocol:
    """One client protocol, without I/O: names its subprotocol, reads commands, and says whether it takes batches."""

    subprotocol: str
    codec: Codec
    batches: bool
    """Whether several messages may arrive in one `batch` envelope."""

    def decode(self, payload: bytes) -> Command:
        """One command. Raises BadInput: `malformed`, `invalid_utf8` (fatal) or `invalid`."""
        codec = self.codec
        try:
            command: Any = codec.decode(payload)
            kind = type(command)
            if kind is SendChat:
                command.content = codec.text_body(command.content)
            elif kind is SendMessage:
                command.data = codec.data_body(command.data)
            elif kind is SendDirect or kind is SendGroup:
                if command.content is not UNSET:
                    command.content = codec.text_body(command.content)
                if command.data is not UNSET:
                    command.data = codec.data_body(command.data)
        except INVALID as error:
            return self._custom(payload, error)
        return command  # type: ignore[no-any-return]

    def _custom(self, payload: bytes, error: Exception) -> Custom:
        """A message of the application's own, or the reason why it is no message at all. `error` is why it is not a command."""
        if isinstance(error, UnicodeDecodeError):
            fatal = CloseCause.BAD_DATA if self.codec.text else None  # RFC 6455, 8.1
            raise BadInput("invalid_utf8", "the text is not UTF-8", counts=True, fatal=fatal) from None
        try:
            head = self.codec.head(payload)
        except RecursionError:
            fault = "the message is nested too deeply"
            raise BadInput("invalid", fault, request_id=self.codec.find_id(payload)) from None
        except INVALID as fault:
            raise BadInput("malformed", f"expected an object in {self.codec.name}: {fault}", counts=True) from None
        name, request_id, room = head.type, head.id, head.room
        if isinstance(request_id, Raw):
            raise BadInput("invalid", "`id` must be a string or an integer")
        if not isinstance(name, str):
            raise BadInput("invalid", "every message needs a `type`, a string", request_id=request_id)
        if name in COMMANDS:
            raise BadInput("invalid", f"{name}: {error}", request_id=request_id)
        return Custom(
            id=request_id,
            type=name,
            room=room if isinstance(room, str) else None,
            fields=partial(self._fields, payload, request_id),
        )

    def _fields(self, payload: bytes, request_id: str | int | None) -> dict[str, Any]:
        try:
            return self.codec.fields(payload)
        except INVALID as error:
            raise BadInput("invalid", str(error), request_id=request_id) from None
