"""Gaps: the messages that one receiver missed and was not told about yet."""

from collections.abc import Iterable

from msgspec import UNSET

from .messages import Gap, Recorded
from .prepared import Prepared

__all__ = ["Gaps"]


class Gaps:
    """Dropped messages, added up by room: one `gap` tells of all of a room's, and where in its history they are."""

    __slots__ = ("_by_room",)

    def __init__(self) -> None:
        self._by_room: dict[str | None, Gap] = {}

    def __bool__(self) -> bool:
        return bool(self._by_room)

    def add(self, messages: Iterable[Prepared]) -> None:
        for message in messages:
            gap = self._by_room.get(message.room)
            if gap is None:
                room = UNSET if message.room is None else message.room
                gap = self._by_room[message.room] = Gap(room=room, dropped=0)
            assert isinstance(gap.dropped, int)
            gap.dropped += 1
            event = message.event
            if isinstance(event, Recorded) and isinstance(event.offset, int):
                gap.epoch = event.epoch
                gap.start = event.offset if gap.start is UNSET else min(gap.start, event.offset)
                gap.to = event.offset if gap.to is UNSET else max(gap.to, event.offset)

    def take(self) -> list[Gap]:
        """What is to be told now."""
        gaps = list(self._by_room.values())
        self._by_room.clear()
        return gaps

    def clear(self) -> None:
        self._by_room.clear()
