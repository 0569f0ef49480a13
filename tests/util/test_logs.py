"""The lines of the log: for people and for programs; what clients have sent cannot break them."""

import json
import logging
import os
import re
import time

from trioswitch._util.logs import JsonFormatter, NonBlockingHandler, TextFormatter


def record(text: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("trioswitch.x", logging.WARNING, "", 0, text, arguments, exc_info)


def test_control_characters_are_shown_as_escapes() -> None:
    line = TextFormatter("%(levelname)s %(message)s").format(record("user %s", "a\nb\r\x1b[2J\u2028\x85c"))
    assert line == r"WARNING user a\nb\r\x1b[2J\u2028\x85c"


def test_an_object_a_line() -> None:
    try:
        raise ValueError("no\ngood")
    except ValueError as error:
        line = JsonFormatter("node 1").format(record("user %s", "\u00e9\n", error=error))
    assert "\n" not in line
    assert line.isascii()
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("@timestamp"))
    assert "Traceback" in found.pop("error.stack_trace")
    assert found == {
        "log.level": "warning",
        "log.logger": "trioswitch.x",
        "message": "user \u00e9\n",
        "service.name": "trioswitch",
        "service.node.name": "node 1",
        "process.pid": os.getpid(),
        "error.type": "ValueError",
        "error.message": "no\ngood",
    }


def test_which_client_a_line_is_about() -> None:
    about = record("refused")
    about.connection, about.client = "c1", "192.0.2.1:5"
    found = json.loads(JsonFormatter().format(about))
    assert (found["trioswitch.connection.id"], found["client.address"]) == ("c1", "192.0.2.1:5")
    plain = json.loads(JsonFormatter().format(record("started")))
    assert not {"trioswitch.connection.id", "client.address"} & plain.keys()


def test_what_is_left_out_is_told_as_an_object_too() -> None:
    reading, writing = os.pipe()
    handler = NonBlockingHandler(writing)
    handler.setFormatter(JsonFormatter())
    for number in range(5000):  # of as many kinds, so that none is summed up
        handler.handle(record(f"line {number} " + "x" * 1000))
    data, deadline = b"", time.monotonic() + 20
    while b"were dropped" not in data:
        data += os.read(reading, 1 << 20)
        assert time.monotonic() < deadline
    handler.close()
    os.close(writing)
    while more := os.read(reading, 1 << 20):
        data += more
    os.close(reading)
    messages = [json.loads(line)["message"] for line in data.splitlines()]
    dropped = [message for message in messages if "were dropped" in message]
    assert sum(int(message.split()[0]) for message in dropped) + len(messages) - len(dropped) == 5000
