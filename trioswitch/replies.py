"""Replies to commands: the `ack` of a publish, of a join and of `history`, or the `error` instead."""

from msgspec import Raw

from .connections.driver import ConnectionDriver
from .durability.recovery import HistoryPage, Joined
from .errors import code_of
from .wire.commands import History, JoinRoom
from .wire.messages import Ack
from .wire.prepared import Outcome, Prepared, Receipt

__all__ = ["Acknowledge", "tell_history", "tell_joined"]


class Acknowledge:
    """Answers a publish with its receipt, or with the reason why it was not published."""

    __slots__ = ("_connection", "_request_id")

    def __init__(self, connection: ConnectionDriver, request_id: str | int | None) -> None:
        self._connection = connection
        self._request_id = request_id

    def __call__(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Receipt):
            self._connection.reply_error(code_of(outcome), str(outcome), self._request_id)
        elif self._request_id is not None:
            self._connection.reply(receipt_of(self._request_id, outcome))


def receipt_of(request_id: str | int, receipt: Receipt) -> Ack:
    ack = Ack(id=request_id, delivered=receipt.delivered, queued=receipt.queued, dropped=receipt.dropped)
    if receipt.offset is not None and receipt.epoch is not None:
        ack.epoch, ack.offset = receipt.epoch, receipt.offset
    if receipt.kept:
        ack.kept = receipt.kept
    if receipt.seq is not None:
        ack.seq = receipt.seq
    if receipt.duplicate:
        ack.duplicate = True
    return ack


def tell_joined(connection: ConnectionDriver, command: JoinRoom, joined: Joined) -> None:
    """Answer a join, if the client wants to know."""
    if command.id is None:
        return
    room, position = joined.room, joined.position
    ack = Ack(id=command.id, room=room.name, online_count=len(room.membership.users), user_id=connection.user)
    if position is not None:
        ack.epoch, ack.offset = position.epoch, position.offset
    if joined.recovered is not None:
        ack.recovered = joined.recovered
    connection.reply(ack)


def tell_history(connection: ConnectionDriver, command: History, page: HistoryPage) -> None:
    """Answer `history`. A message that the client's codec cannot carry has an `error` in its place."""
    assert command.id is not None
    codec = connection.transport.format.protocol.codec
    ack = Ack(
        id=command.id,
        room=command.room,
        epoch=page.position.epoch,
        offset=page.position.offset,
        messages=[Raw(Prepared(event, room=command.room).payload(codec)) for event in page.messages],
        more=page.more,
    )
    if page.recovered is not None:
        ack.recovered = page.recovered
    connection.reply_at_length(ack)
