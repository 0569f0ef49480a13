"""Client protocols: bytes <-> messages. One object for each; nothing outside `wire/` knows which one a client speaks.

A protocol decodes in two steps: msgspec turns bytes into a dict, then the cattrs converter (msgspec backend, strict
types: `True` is no integer) builds the command that the dict's `type` names. Measured for a chat message of 140 bytes:
0.2 us and 0.9 us; events are encoded by msgspec straight from their attrs classes in 0.2 us.
"""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import msgspec
from cattrs.fns import identity
from cattrs.preconf.msgspec import make_converter

from ...errors import BadInput, CloseCause, UnencodableData
from ..messages import COMMANDS, Command, Custom, Event

__all__ = ["ClientProtocol", "Codec"]

converter = make_converter()
converter.register_structure_hook_func(attrs.has, msgspec.convert)
converter.register_unstructure_hook(msgspec.UnsetType, identity)  # msgspec leaves UNSET fields out
_STRUCTURE: dict[str, Callable[[Any, type[Command]], Command]] = {
    name: converter.get_structure_hook(command) for name, command in COMMANDS.items()
}

# What msgspec raises for data that it cannot write: a foreign type, an integer of more than 64 bits (MessagePack), a
# lone surrogate, a structure nested too deeply.
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)


@attrs.frozen(eq=False)
class Codec:
    """One way to write a message: every protocol that shares it shares the encoded bytes."""

    name: str
    text: bool
    """Whether its bytes go into text frames."""
    decode: Callable[[bytes], dict[Any, Any]]
    _encode: Callable[[object], bytes]
    _join: Callable[[Sequence[bytes], str], bytes]

    def encode(self, event: Event) -> bytes:
        """The event's bytes. Raises UnencodableData."""
        try:
            return self._encode(event)
        except _UNENCODABLE as error:
            raise UnencodableData(f"cannot be written as {self.name}: {error}") from None

    def batch(self, payloads: Sequence[bytes], timestamp: str) -> bytes:
        """A `batch` envelope around messages that are encoded already."""
        return self._join(payloads, timestamp)


@attrs.frozen(eq=False)
class ClientProtocol:
    """One client protocol, without I/O: names its subprotocol, reads commands, and says whether it takes batches."""

    subprotocol: str
    codec: Codec
    batches: bool
    """Whether several messages may arrive in one `batch` envelope."""

    def decode(self, payload: bytes) -> Command:
        """One command. Raises BadInput: `malformed`, `invalid_utf8` (fatal), `invalid` or `unknown_type`."""
        try:
            fields = self.codec.decode(payload)
        except (ValueError, RecursionError, TypeError) as error:  # msgspec's errors are ValueErrors
            if isinstance(error, UnicodeDecodeError) or (self.codec.text and not _is_utf8(payload)):
                fatal = CloseCause.BAD_DATA if self.codec.text else None  # RFC 6455, 8.1
                raise BadInput("invalid_utf8", "the text is not UTF-8", counts=True, fatal=fatal) from None
            raise BadInput("malformed", f"expected an object in {self.codec.name}: {error}", counts=True) from None
        name, request_id = fields.get("type"), fields.get("id")
        if type(request_id) not in (str, int, type(None)):
            raise BadInput("invalid", "`id` must be a string or an integer")
        if not isinstance(name, str):
            raise BadInput("invalid", "every message needs a `type`, a string", request_id=request_id)
        structure = _STRUCTURE.get(name)
        try:
            if structure is not None:
                return structure(fields, COMMANDS[name])
            return Custom(id=request_id, type=name, fields=msgspec.convert(fields, dict[str, Any]))
        except msgspec.ValidationError as error:
            raise BadInput("invalid", f"{name}: {error}", request_id=request_id) from None


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
