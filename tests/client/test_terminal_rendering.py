"""The terminal client's lines: text, colours, times."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from trioswitch.client import Announcement, Gap, Message
from trioswitch.client.terminal.rendering import Renderer

NOW = datetime(2026, 11, 26, 12, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("item", "line"),
    [
        (Message(type="chat_message", room="r", user_id="ann", content="hi"), "[r] ann: hi"),
        (Message(type="message", room="r", user_id="ann", data={"ü": [1, None]}), '[r] ann: {"ü": [1, null]}'),
        (Message(type="message", data=1), "the server: 1"),
        (Message(type="direct_message", to="me", user_id="bob", content="psst"), "[to you] bob: psst"),
        (Message(type="group_message", group="g", user_id="bob", content="all"), "[group g] bob: all"),
        (Message(type="chat_message", room="r", user_id="a\x07", content="\x1b[2Jx\n"), "[r] a\\x07: \\x1b[2Jx\\n"),
        (Gap(room="r", dropped=None), "[r] ... some messages are missing"),
        (Gap(room=None, dropped=1), "... 1 message is missing"),
        (Gap(room="r", dropped=2), "[r] ... 2 messages are missing"),
        (
            Announcement(room="r", action="user_joined", user_id="bob", online_count=2, timestamp=""),
            "[r] + bob (2 here)",
        ),
        (Announcement(room="r", action="user_left", user_id="bob", online_count=1, timestamp=""), "[r] - bob (1 here)"),
        (Announcement(room="r", action="count", user_id=None, online_count=99, timestamp=""), "[r] (99 here)"),
    ],
)
def test_items_are_one_line_each(item: Any, line: str) -> None:
    assert Renderer().item(item) == line


@pytest.mark.parametrize(
    ("timestamp", "shown"),
    [
        ("2026-11-26T09:05:01.123Z", "11:05"),
        ("2026-11-25T21:59:00Z", "2026-11-25 23:59"),
        ("2026-11-25T22:00:00Z", "00:00"),
        ("", "12:30"),
        ("yesterday", "12:30"),
    ],
)
def test_times_are_local_and_have_a_date_if_it_is_not_today(timestamp: str, shown: str) -> None:
    renderer = Renderer(times=True, now=lambda: NOW)
    message = Message(type="chat_message", room="r", user_id="ann", content="hi", timestamp=timestamp)
    assert renderer.item(message) == f"{shown} [r] ann: hi"


def test_notes_have_the_time_of_now() -> None:
    renderer = Renderer(times=True, now=lambda: NOW.astimezone(UTC))
    assert renderer.note("connected") == "10:30 * connected"
    assert renderer.error("no") == "10:30 ! no"
    assert renderer.answer("r", "here: ann") == "10:30 [r] here: ann"


def test_a_user_has_one_colour_and_the_own_name_is_bold() -> None:
    renderer = Renderer(colours=True)

    def line(user: str, own: str) -> str:
        return renderer.item(Message(type="chat_message", room="r", user_id=user, content="hi"), own)

    assert line("ann", "ann") == "\x1b[36m[r]\x1b[0m \x1b[1mann\x1b[0m: hi"
    assert line("ann", "bob") == line("ann", "cho") != line("ann", "ann")
    assert len({line(f"user{number}", "ann").replace(f"user{number}", "") for number in range(50)}) > 5


def test_text_cannot_bring_its_own_colours() -> None:
    message = Message(type="message", room="\x1b[31m", user_id="\x1b[32m", data="\x1b[33m")
    assert "\x1b" not in Renderer().item(message)
    assert json.dumps("\x1b[33m") in Renderer().item(message)
