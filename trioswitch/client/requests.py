"""What the application has asked the server and waits for: it outlives connections."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import attrs
import msgspec
import trio

from ..errors import UnencodableData
from .errors import ClientError, ConnectionLost, RequestFailed

__all__ = ["Request", "Requests", "encode"]


@attrs.define(eq=False)
class Request:
    id: int
    payload: bytes
    repeatable: bool
    """Whether it does no harm to send it again when its answer was lost."""
    answered: trio.Event = attrs.field(factory=trio.Event)
    answer: Mapping[str, Any] | ClientError | None = None
    size: int = 0
    """Bytes of the answer."""

    def on_outcome(self, answer: Mapping[str, Any] | ClientError, size: int = 0) -> None:
        self.answer, self.size = answer, size
        self.answered.set()


class Requests:
    """Requests go out in the order in which they were asked, again where their answer was lost, and wait in their own tasks.

    So there are as many of them as there are tasks that wait, and those of one task stay in its order.
    """

    def __init__(self) -> None:
        self._last = 0
        self._unsent: OrderedDict[int, Request] = OrderedDict()
        self._sent: OrderedDict[int, Request] = OrderedDict()
        self.wake = trio.lowlevel.ParkingLot()
        """Is unparked when there is something to send."""
        self._ended: ClientError | None = None

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    async def ask(self, type: str, fields: Mapping[str, Any], *, repeatable: bool = True) -> Mapping[str, Any]:
        """Send a command and return its `ack`.

        Raises RequestFailed, UnencodableData, ConnectionLost for what is not `repeatable`, and what `end` was given. When it
        is cancelled nobody knows whether the server has carried it out, unless it has not been sent: then it will not be.
        """
        if self._ended is not None:
            await trio.lowlevel.checkpoint()
            raise self._ended
        self._last += 1
        id = self._last
        request = Request(id, encode({"type": type, **fields, "id": id}), repeatable)
        self._unsent[id] = request
        self.wake.unpark_all()
        try:
            await request.answered.wait()
        finally:
            self._unsent.pop(id, None)
            self._sent.pop(id, None)
        answer = request.answer
        assert answer is not None
        if isinstance(answer, ClientError):
            raise answer
        if answer.get("type") == "error":
            raise RequestFailed(answer.get("code", ""), answer.get("message", ""))
        return answer

    def next(self, max_bytes: int) -> bytes | None:
        """The next one to send; None: there is none. One that is bigger than the server takes fails here."""
        while self._unsent:
            id, request = self._unsent.popitem(last=False)
            if len(request.payload) <= max_bytes:
                self._sent[id] = request
                return request.payload
            request.on_outcome(RequestFailed("too_big", f"{len(request.payload)} bytes: the server takes {max_bytes}"))
        return None

    def answer(self, answer: Mapping[str, Any]) -> None:
        """An `ack` or `error` came."""
        request = self._sent.pop(answer["id"], None)
        if request is not None:
            request.on_outcome(answer)

    def lost(self, error: ConnectionLost) -> None:
        """The connection ended: what has no answer is sent again on the next one, before what has not been sent yet."""
        for id, request in reversed(self._sent.items()):
            if request.repeatable:
                self._unsent[id] = request
                self._unsent.move_to_end(id, last=False)
            else:
                request.on_outcome(error)
        self._sent.clear()

    def end(self, error: ClientError) -> None:
        """Nothing will be sent any more: whoever waits, or comes later, gets `error`."""
        self._ended = error
        for request in (*self._sent.values(), *self._unsent.values()):
            request.on_outcome(error)
        self._sent.clear()
        self._unsent.clear()


def encode(message: Mapping[str, Any]) -> bytes:
    """A command's bytes. Raises UnencodableData."""
    try:
        return msgspec.json.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnencodableData(f"JSON cannot carry it: {error}") from None
