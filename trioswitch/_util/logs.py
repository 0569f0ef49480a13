"""A log that never blocks: lines are written by a thread, and those that nobody reads in time are dropped and counted.

A log that goes to a pipe whose reader has stopped would stop the event loop otherwise, and with it the server.
"""

import json
import logging
import os
import queue
import re
import threading
import time
from datetime import UTC, datetime
from typing import Final

__all__ = ["JsonFormatter", "NonBlockingHandler", "TextFormatter"]

PENDING: Final = 1000
"""Lines that wait to be written; more are dropped."""
ALIKE: Final = 10
"""Lines of one kind (logger, level and text, whatever is filled in) that are written in one second. More are summed up."""


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class TextFormatter(logging.Formatter):
    """A line for people. What clients sent cannot break it, nor steer a terminal: control characters are shown as escapes."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in `logging`
        record.message = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], record.message)
        return super().formatMessage(record)


_ABOUT: Final = {"trioswitch.connection.id": "connection", "client.address": "client"}
"""Fields of JSON lines, and the attributes of records (`extra`) that they come from, where a line is about one of these."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the names of the Elastic Common Schema (https://www.elastic.co/docs/reference/ecs)."""

    def __init__(self, node: str = "") -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {
            "@timestamp": at,
            "log.level": record.levelname.lower(),
            "log.logger": record.name,
            "message": record.getMessage(),
            "service.name": "trioswitch",
            "process.pid": os.getpid(),
        }
        if self._node:
            line["service.node.name"] = self._node
        for name, attribute in _ABOUT.items():
            if (value := getattr(record, attribute, None)) is not None:
                line[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            line["error.type"] = type(record.exc_info[1]).__name__
            line["error.message"] = str(record.exc_info[1])
            line["error.stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


class _Kind:
    __slots__ = ("count", "since", "skipped")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = self.skipped = 0


class NonBlockingHandler(logging.Handler):
    """Writes to a file descriptor in a thread of its own. `close` waits a moment for what is pending."""

    def __init__(self, descriptor: int = 2) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._pending: queue.Queue[str | None] = queue.Queue(PENDING)
        self._dropped = 0
        self._kinds: dict[tuple[str, int, str], _Kind] = {}
        self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock, as by `logging`."""
        try:
            if self._is_alike(record):
                return
            self._put(self.format(record))
        except Exception:
            self.handleError(record)

    def _is_alike(self, record: logging.LogRecord) -> bool:
        """Whether the line is one too many of its kind in this second."""
        key, now = (record.name, record.levelno, str(record.msg)), time.monotonic()
        kind = self._kinds.get(key)
        if kind is None or now - kind.since >= 1.0:
            self._sum_up(now)
            kind = self._kinds[key] = _Kind(now)
        kind.count += 1
        kind.skipped += kind.count > ALIKE
        return kind.count > ALIKE

    def _sum_up(self, now: float) -> None:
        """Say how many lines were left out of the kinds whose second is over."""
        for key in [key for key, kind in self._kinds.items() if now - kind.since >= 1.0]:
            kind, (name, level, text) = self._kinds.pop(key), key
            if kind.skipped:
                record = logging.LogRecord(name, level, "", 0, "%d more of: %s", (kind.skipped, text), None)
                self._put(self.format(record))

    def _put(self, line: str) -> None:
        try:
            self._pending.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write_lines(self) -> None:
        while True:
            try:
                line = self._pending.get(timeout=1.0)
            except queue.Empty:
                with self.lock or threading.RLock():
                    self._sum_up(time.monotonic())
                continue
            if line is None:
                return
            self._write(line)
            if self._dropped and self._pending.empty():
                dropped, self._dropped = self._dropped, 0
                text = "%d log lines were dropped: they came faster than they were read"
                record = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (dropped,), None)
                self._write(self.format(record))

    def _write(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                return  # nobody will ever read it

    def close(self) -> None:
        with self.lock or threading.RLock():
            self._sum_up(float("inf"))
        try:
            self._pending.put_nowait(None)
        except queue.Full:
            self._dropped += 1
        self._thread.join(1.0)
        super().close()
