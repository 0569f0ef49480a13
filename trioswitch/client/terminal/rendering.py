"""One line of text for each thing that a person is shown."""

import json
import zlib
from collections.abc import Callable
from datetime import datetime

import attrs

from ..messages import Announcement, Gap, Message
from ..room_sync import Item

__all__ = ["Renderer", "plain"]

BOLD, DIM, RED, YELLOW, CYAN = 1, 2, 31, 33, 36
USER_COLOURS = (31, 32, 33, 34, 35, 36, 91, 92, 94, 95)
"""Colours (SGR) of user names: each user always has the same one."""


@attrs.frozen(kw_only=True)
class Renderer:
    """Renders items and notes. `colours`: use escape sequences for colours; `times`: begin each line with the time of day."""

    colours: bool = False
    times: bool = False
    now: Callable[[], datetime] = datetime.now

    def item(self, item: Item, user_id: str | None = None) -> str:
        """A message, a gap or an announcement; the name of the user `user_id` is emphasized."""
        if isinstance(item, Gap):
            return f"{self._time()}{self._room(item.room)}{self._paint(f'... {_missing(item.dropped)}', YELLOW)}"
        if isinstance(item, Announcement):
            sign = {"user_joined": "+ ", "user_left": "- "}.get(item.action, "")
            who = f"{sign}{plain(item.user_id)} " if item.user_id is not None else ""
            text = self._paint(f"{who}({item.online_count} here)", DIM)
            return f"{self._time(item.timestamp)}{self._room(item.room)}{text}"
        return f"{self._time(item.timestamp)}{self._receiver(item)}{self._sender(item, user_id)}: {_text(item)}"

    def note(self, text: str) -> str:
        """A sentence about the client itself."""
        return f"{self._time()}{self._paint(f'* {text}', DIM)}"

    def error(self, text: str) -> str:
        """A sentence about a line that could not be executed."""
        return f"{self._time()}{self._paint(f'! {text}', RED)}"

    def answer(self, room: str, text: str) -> str:
        """An answer about a room."""
        return f"{self._time()}{self._room(room)}{text}"

    def _receiver(self, message: Message) -> str:
        if message.to is not None:
            return self._paint("[to you]", BOLD) + " "
        if message.group is not None:
            return self._paint(f"[group {plain(message.group)}]", CYAN) + " "
        return self._room(message.room)

    def _sender(self, message: Message, user_id: str | None) -> str:
        if message.user_id is None:
            return self._paint("the server", BOLD)
        if message.user_id == user_id:
            return self._paint(plain(message.user_id), BOLD)
        colour = USER_COLOURS[zlib.crc32(message.user_id.encode(errors="replace")) % len(USER_COLOURS)]
        return self._paint(plain(message.user_id), colour)

    def _room(self, name: str | None) -> str:
        return "" if name is None else self._paint(f"[{plain(name)}]", CYAN) + " "

    def _time(self, timestamp: str = "") -> str:
        if not self.times:
            return ""
        now = self.now()
        try:
            at = datetime.fromisoformat(timestamp).astimezone(now.tzinfo) if timestamp else now
        except ValueError:
            at = now
        return self._paint(f"{at:%H:%M}" if at.date() == now.date() else f"{at:%Y-%m-%d %H:%M}", DIM) + " "

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours else text


def plain(text: str) -> str:
    """The text with escapes for control characters, so that it cannot control the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _text(message: Message) -> str:
    return plain(message.content if message.content is not None else json.dumps(message.data, ensure_ascii=False))


def _missing(dropped: int | None) -> str:
    if dropped is None:
        return "some messages are missing"
    return f"{dropped} message{'s are' if dropped > 1 else ' is'} missing"
