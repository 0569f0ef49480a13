"""The application's requests that the server has not answered yet. They outlive connections."""

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
    """Whether it can be sent again without harm when its answer was lost."""
    completed: trio.Event = attrs.field(factory=trio.Event)
    answer: Mapping[str, Any] | ClientError | None = None

    def complete(self, answer: Mapping[str, Any] | ClientError) -> None:
        self.answer = answer
        self.completed.set()


class Requests:
    """The pending requests: each belongs to a task that waits for its answer.

    Requests are sent in the order in which they were made, and sent again if their answer was lost. There are as many requests as
    there are waiting tasks, so no further limit is needed, and the requests of one task keep their order.
    """

    def __init__(self) -> None:
        self._last_id = 0
        self._unsent: OrderedDict[int, Request] = OrderedDict()
        self._sent: OrderedDict[int, Request] = OrderedDict()
        self.wake = trio.lowlevel.ParkingLot()
        """Unparked when there is something to send."""
        self._ended: ClientError | None = None

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    async def ask(self, type: str, fields: Mapping[str, Any], *, repeatable: bool = True) -> Mapping[str, Any]:
        """Send a command and return its `ack`.

        Raises RequestFailed, UnencodableData, ConnectionLost if it is not `repeatable`, and the error that `end` was given.
        Cancelling is safe: a request that was not sent yet is never sent; otherwise the server may have executed it.
        """
        if self._ended is not None:
            await trio.lowlevel.checkpoint()
            raise self._ended
        self._last_id += 1
        id = self._last_id
        request = Request(id, encode({"type": type, **fields, "id": id}), repeatable)
        self._unsent[id] = request
        self.wake.unpark_all()
        try:
            await request.completed.wait()
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
        """The next request to send, or None. A request of more than `max_bytes`, the server's limit, fails here."""
        while self._unsent:
            id, request = self._unsent.popitem(last=False)
            size = len(request.payload)
            if size <= max_bytes:
                self._sent[id] = request
                return request.payload
            request.complete(RequestFailed("too_big", f"the request has {size} bytes, the server takes {max_bytes}"))
        return None

    def answer(self, answer: Mapping[str, Any]) -> None:
        """Complete the request that an `ack` or `error` belongs to; does nothing if its task was cancelled."""
        request = self._sent.pop(answer["id"], None)
        if request is not None:
            request.complete(answer)

    def connection_lost(self, error: ConnectionLost) -> None:
        """Queue unanswered requests for the next connection, ahead of those not sent yet; fail those that are not repeatable."""
        for id, request in reversed(self._sent.items()):
            if request.repeatable:
                self._unsent[id] = request
                self._unsent.move_to_end(id, last=False)
            else:
                request.complete(error)
        self._sent.clear()

    def end(self, error: ClientError) -> None:
        """Fail all requests, and all later ones, with `error`."""
        self._ended = error
        for request in (*self._sent.values(), *self._unsent.values()):
            request.complete(error)
        self._sent.clear()
        self._unsent.clear()


def encode(message: Mapping[str, Any]) -> bytes:
    """The bytes of a command. Raises UnencodableData."""
    try:
        return msgspec.json.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UnencodableData(f"the data cannot be encoded as JSON: {error}") from None
