"""Writes to the tables. Each method takes many items, and is called in the writer's thread and transaction."""

import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Literal

import attrs

from ..port import (
    KEY_TIME,
    POSITION_TIME,
    Append,
    Appended,
    InboxLimits,
    InboxMessage,
    InboxResult,
    Refusal,
)
from .room_rows import SELECT_ROOM, RoomRow, first_kept
from .rows import Row, Rows
from .senders import InboxSenders, RoomSenders

__all__ = ["Writer"]

CACHED_ROOMS: Final = 10_000
"""Rooms whose row the writer knows by heart; then it starts anew."""
SLACK: Final = 64
"""Messages of a room beyond its retention after which they are deleted, so that not each append has to delete."""
SWEEP_STEP: Final = 1000
"""Rows that a sweep deletes in one transaction, about: appends must not wait long for it."""
SWEEP_ROOMS: Final = 100
"""Rooms that a sweep trims in one transaction at most ..."""
SWEEP_WINDOW: Final = 1000
"""... and those among which it looks for them."""
GREATEST: Final = 2**63 - 1


@attrs.define(eq=False)
class _Inbox:
    """A row of `inboxes`."""

    id: int
    user: str
    last: int
    at: float
    waiting: tuple[int, int] | None = None
    """How many inbox messages it has, and their bytes. Not in the row: None when nobody knows."""

    def has_space(self, inbox_message: InboxMessage, limits: InboxLimits) -> bool:
        assert self.waiting is not None
        count, size = self.waiting
        return count < limits.messages and size + len(inbox_message.payload) <= limits.bytes

    def add(self, inbox_message: InboxMessage) -> None:
        """Count an inbox message."""
        assert self.waiting is not None
        self.waiting = self.waiting[0] + 1, self.waiting[1] + len(inbox_message.payload)
        self.last += 1
        self.at = max(self.at, inbox_message.at)


class Writer:
    """Writes. It alone does (the lock beside the file sees to that), so it may know rooms by heart."""

    def __init__(self, connection: sqlite3.Connection, users: set[str], check: Callable[[], None]) -> None:
        """`users` is kept up to date: all who have inbox messages are in it before that is committed, and hardly anybody else.

        `check` raises StoreError when the file is not there any more.
        """
        self._check = check
        self._connection = connection
        self._users = users
        self._rows = Rows(connection)
        self._rooms: dict[str, RoomRow] = {}
        self._room_senders = RoomSenders(connection, self._rows)
        self._inbox_senders = InboxSenders(connection, self._rows)

    def forget(self) -> None:
        """What was done since the last commit was undone."""
        self._rooms.clear()
        self._room_senders.forget()
        self._inbox_senders.forget()

    # --- rooms

    def append(self, limited: Sequence[tuple[Append, int]]) -> list[Appended]:
        """Each message with the bytes that those of all rooms may take."""
        self._check()
        appends = [append for append, _total_bytes in limited]
        self._load({append.room for append in appends})
        senders = self._room_senders
        senders.load([append.sender for append in appends])
        known = self._rows.known(
            "room_keys", [(self._rooms[a.room].id, a.key) for a in appends if a.room in self._rooms]
        )
        appended: list[Appended] = []
        touched: dict[int, RoomRow] = {}
        changed: dict[int, RoomRow] = {}
        messages: list[Row] = []
        keys: list[Row] = []
        for append, total_bytes in limited:
            room = self._rooms.get(append.room)
            if room is not None and (offset := known.get((room.id, append.key))) is not None:
                appended.append(Appended(room.epoch, offset, duplicate=True))
                continue
            sender = senders.add(append.sender, len(append.payload), total_bytes)
            if isinstance(sender, Refusal):
                appended.append(Appended(room.epoch if room is not None else "", 0, duplicate=False, refusal=sender))
                continue
            if room is None:
                room = self._make_room(append)
                changed[room.id] = room
            if room.add(append):
                changed[room.id] = room
            touched[room.id] = room
            offset = room.last
            messages.append((room.id, offset, append.at, append.expires_at, append.payload, sender))
            if append.key is not None:
                known[room.id, append.key] = offset
                keys.append((room.id, append.key, offset, append.at))
            appended.append(Appended(room.epoch, offset, duplicate=False))
        senders.save()
        self._rows.insert("messages", messages)
        self._rows.insert("room_keys", keys)
        self._save(changed.values())
        self._trim(room for room in touched.values() if room.first - room.trimmed > SLACK)
        return appended

    def _load(self, names: Collection[str]) -> None:
        if len(self._rooms) > CACHED_ROOMS:
            self._rooms.clear()
        for row in self._rows.select(f"{SELECT_ROOM} name IN", [name for name in names if name not in self._rooms]):
            self._rooms[row[1]] = RoomRow(*row)

    def _make_room(self, append: Append) -> RoomRow:
        retention, epoch = append.retention, secrets.token_urlsafe(6)
        room = RoomRow(self._rows.next_id("rooms"), append.room, epoch, 1, 0, retention.size, retention.age, append.at)
        self._rooms[append.room] = room
        return room

    def _save(self, rooms: Iterable[RoomRow]) -> None:
        self._rows.insert(
            "rooms",
            [(room.id, room.name, room.epoch, room.first, room.last, room.size, room.age, room.at) for room in rooms],
            "ON CONFLICT (id) DO UPDATE SET first = excluded.first, last = excluded.last, size = excluded.size,"
            " age = excluded.age, at = excluded.at",
        )

    def _trim(self, rooms: Iterable[RoomRow]) -> None:
        for room in rooms:
            self._room_senders.delete_messages("room = ? AND offset < ?", (room.id, room.first))
            room.trimmed = room.first

    # --- inboxes

    def post(self, inbox_messages: Sequence[tuple[InboxMessage, InboxLimits]]) -> list[InboxResult]:
        """Each inbox message with what its inbox takes."""
        self._check()
        users = {inbox_message.user for inbox_message, _limits in inbox_messages}
        rows = self._rows.select("SELECT id, user, last, at FROM inboxes WHERE user IN", list(users))
        inboxes = {row[1]: _Inbox(*row) for row in rows}
        known = self._rows.known(
            "inbox_keys", [(inboxes[one.user].id, one.key) for one, _ in inbox_messages if one.user in inboxes]
        )
        (forgotten,) = self._connection.execute("SELECT forgotten FROM all_inboxes").fetchone()
        senders = self._inbox_senders
        senders.load([one.sender for one, _ in inbox_messages])
        posted: list[InboxResult] = []
        touched: dict[int, _Inbox] = {}
        kept: list[Row] = []
        keys: list[Row] = []
        for inbox_message, limits in inbox_messages:
            inbox = inboxes.get(inbox_message.user)
            if inbox is None:
                inbox = _Inbox(self._rows.next_id("inboxes"), inbox_message.user, forgotten, inbox_message.at, (0, 0))
                inboxes[inbox_message.user] = inbox
            if (seq := known.get((inbox.id, inbox_message.key))) is not None:
                posted.append(InboxResult(seq, duplicate=True))
                continue
            if inbox.waiting is None:
                inbox.waiting = self._waiting(inbox.id, inbox_message.at)
            if not inbox.has_space(inbox_message, limits):
                posted.append(InboxResult(0, duplicate=False, refusal=Refusal.INBOX))
                continue
            sender = senders.add(inbox_message.sender, len(inbox_message.payload), limits.total_bytes)
            if isinstance(sender, Refusal):
                posted.append(InboxResult(0, duplicate=False, refusal=sender))
                continue
            inbox.add(inbox_message)
            touched[inbox.id] = inbox
            kept.append(
                (inbox.id, inbox.last, inbox_message.at, inbox_message.expires_at, inbox_message.payload, sender)
            )
            if inbox_message.key is not None:
                known[inbox.id, inbox_message.key] = inbox.last
                keys.append((inbox.id, inbox_message.key, inbox.last, inbox_message.at))
            posted.append(InboxResult(inbox.last, duplicate=False))
        saved = [(inbox.id, inbox.user, inbox.last, inbox.at) for inbox in touched.values()]
        self._users.update(inbox.user for inbox in touched.values())
        self._rows.insert("inboxes", saved, "ON CONFLICT (id) DO UPDATE SET last = excluded.last, at = excluded.at")
        senders.save()
        self._rows.insert("letters", kept)
        self._rows.insert("inbox_keys", keys)
        return posted

    def _waiting(self, inbox: int, now: float) -> tuple[int, int]:
        sql = (
            "SELECT count(*), ifnull(sum(length(payload)), 0) FROM letters"
            " WHERE inbox = ? AND (expires_at IS NULL OR expires_at > ?)"
        )
        count, size = self._connection.execute(sql, (inbox, now)).fetchone()
        return count, size

    def acknowledge(self, acknowledged: Sequence[tuple[str, int]]) -> list[None]:
        """Users, each with the seq up to which its inbox messages are to be forgotten."""
        self._connection.executemany(
            "DELETE FROM letters WHERE inbox = (SELECT id FROM inboxes WHERE user = ?) AND seq <= ?",
            [(user, min(upto, GREATEST)) for user, upto in acknowledged],
        )
        return [None] * len(acknowledged)

    # --- sweeping, in steps of SWEEP_STEP rows or so

    def sweep_rows(self, times: Sequence[tuple[float, float]]) -> list[bool]:
        """Each with the time that is now and the age of inbox messages. Returns whether there may be more to do."""
        return [self._sweep_rows(now, inbox_age) for now, inbox_age in times]

    def _sweep_rows(self, now: float, inbox_age: float) -> bool:
        return any(
            [
                self._delete_expired(now),
                self._delete_before("letters", "expires_at", now),
                self._delete_before("letters", "at", now - inbox_age),
                self._delete_before("room_keys", "at", now - KEY_TIME),
                self._delete_before("inbox_keys", "at", now - KEY_TIME),
                self._delete_before("sessions", "expires_at", now),
                self._forget_inboxes(now - inbox_age - POSITION_TIME),
                self._room_senders.forget_idle(SWEEP_STEP),
            ]
        )

    def _delete_expired(self, now: float) -> bool:
        """Delete messages. The newest one of a room may be among them: the row takes over what followed from it."""
        sql = (
            "UPDATE rooms SET (first, last, at) = (SELECT first, last, at FROM rooms_now WHERE id = rooms.id) WHERE id IN"
            f" (SELECT room FROM messages WHERE {_lowest('messages', 'expires_at')})"
        )
        self._connection.execute(sql, {"before": now, "step": SWEEP_STEP})
        values = {"before": now, "step": SWEEP_STEP}
        return self._room_senders.delete_messages(_lowest("messages", "expires_at"), values) > SWEEP_STEP

    def _forget_inboxes(self, before: float) -> bool:
        """Those that have no inbox messages. What else is theirs goes first, for after a restart their ids may be given again."""
        sql = (
            "SELECT id, user, last, at FROM inboxes WHERE at < ? AND NOT EXISTS (SELECT 1 FROM letters WHERE inbox = id)"
            " AND NOT EXISTS (SELECT 1 FROM inbox_keys WHERE owner = id) LIMIT ?"
        )
        inboxes = [_Inbox(*row) for row in self._connection.execute(sql, (before, SWEEP_STEP))]
        if inboxes:
            last = max(inbox.last for inbox in inboxes)
            self._connection.execute("UPDATE all_inboxes SET forgotten = max(forgotten, ?)", (last,))
            self._rows.delete("inboxes", [inbox.id for inbox in inboxes])
            self._users.difference_update(inbox.user for inbox in inboxes)
        return len(inboxes) == SWEEP_STEP

    def _delete_before(
        self,
        table: Literal["letters", "room_keys", "inbox_keys", "sessions"],
        column: Literal["at", "expires_at"],
        before: float,
    ) -> bool:
        """Delete the lowest rows. There is an index for each of the columns."""
        sql = f"DELETE FROM {table} WHERE {_lowest(table, column)}"
        return self._connection.execute(sql, {"before": before, "step": SWEEP_STEP}).rowcount > SWEEP_STEP

    def sweep_rooms(self, steps: Sequence[tuple[int, float]]) -> list[int | None]:
        """Each with the room after which to go on and the time that is now. Returns where to go on next, None: it is done."""
        self._check()
        return [self._sweep_rooms(after, now) for after, now in steps]

    def _sweep_rooms(self, after: int, now: float) -> int | None:
        """Trim rooms by age, and forget those that have been empty for long."""
        sql = "SELECT max(id) FROM (SELECT id FROM rooms WHERE id > ? ORDER BY id LIMIT ?)"
        upto: int | None = self._connection.execute(sql, (after, SWEEP_WINDOW)).fetchone()[0]
        sql = f"{SELECT_ROOM} id > ? AND id <= ? AND (age IS NOT NULL OR first > last) ORDER BY id LIMIT ?"
        rows = self._connection.execute(sql, (after, upto, SWEEP_ROOMS)).fetchall()
        budget = SWEEP_STEP
        for row in rows:
            room = self._rooms.get(row[1]) or RoomRow(*row)
            if room.first > room.last:
                if room.at + (room.age or 0.0) < now - POSITION_TIME:
                    self._forget_room(room)
            elif (first := first_kept(self._connection, room, now)) > room.first:
                room.first, budget = min(first, room.first + budget), budget - (first - room.first)
                self._save([room])
                self._trim([room])
                if budget <= 0:
                    return room.id - 1
        return int(rows[-1][0]) if len(rows) == SWEEP_ROOMS else upto

    def _forget_room(self, room: RoomRow) -> None:
        self._rooms.pop(room.name, None)
        self._room_senders.delete_messages("room = ?", (room.id,))
        for table, column in (("rooms", "id"), ("room_keys", "owner")):
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (room.id,))


def _lowest(table: str, column: str) -> str:
    """Which rows of a table are below `before`, but of these only about `step`.

    The index is to be used for the second bound, which is the lower one: with the first each step went through all rows.
    """
    return (
        f"+{column} < :before AND {column} <= ifnull("
        f"(SELECT {column} FROM {table} WHERE {column} IS NOT NULL ORDER BY {column} LIMIT 1 OFFSET :step), :before)"
    )
