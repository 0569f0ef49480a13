"""One client process: `python -m trioswitch.bench.worker`. Orders come on stdin, replies go out on stdout.

It ends with its stdin. Ctrl-C is left to the parent.
"""

import gc
import os
import resource
import signal
import sys
import time
from typing import Final

import msgspec

from .crowd import Client, Crowd
from .orders import (
    SLOT,
    Collect,
    Connect,
    Connected,
    Echo,
    Failed,
    Finished,
    Listen,
    Order,
    Publish,
    Quit,
    Ready,
    Reply,
)
from .recorder import Recorder
from .target import BenchError

__all__: list[str] = []

PACE: Final = 0.001
"""Seconds between two looks at the clock while publishing: what is due by then goes out together."""
CATCH_UP: Final = 0.2
"""Seconds of messages that a publisher makes up for at most, after the server has held it back."""
BURST: Final = 60_000
"""Bytes in one send at most."""
PATIENCE: Final = 5_000_000_000
"""ns in which a server must take the last of what was published."""

_decode = msgspec.json.Decoder(Connect | Listen | Publish | Echo | Collect | Quit).decode
_encode = msgspec.json.Encoder().encode


class Worker:
    """Does what it is told, and ticks."""

    def __init__(self, orders: int, replies: int) -> None:
        self._orders = orders
        self._replies = replies
        self._unread = b""
        self._recorder = Recorder()
        self._crowd: Crowd | None = None
        self._connecting = False
        self._publishing: _Publishing | None = None
        self._echo: Echo | None = None
        self._next_tick = self._began = 0
        self._over = False

    def run(self) -> None:
        """Returns when told to, or when the parent is gone."""
        while not self._over and self._crowd is None:
            self._read_orders()
        while not self._over:
            assert self._crowd is not None
            if self._crowd.pump(self._timeout()):
                self._read_orders()
            self._act(self._crowd, time.monotonic_ns())
        if self._crowd is not None:
            self._crowd.close()

    def reply(self, reply: Reply) -> None:
        data = memoryview(_encode(reply) + b"\n")
        while data:
            data = data[os.write(self._replies, data) :]

    def _read_orders(self) -> None:
        data = os.read(self._orders, 65536)
        self._over = not data
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._obey(_decode(line))

    def _obey(self, order: Order) -> None:
        now = time.monotonic_ns()
        if isinstance(order, Connect):
            self._crowd = Crowd(order, self._recorder)
            self._crowd.watch(self._orders)
            self._connecting, self._began = True, now
            self._next_tick = now + SLOT
        elif isinstance(order, Listen):
            self._recorder.listen(order.since)
        elif isinstance(order, Publish):
            assert self._crowd is not None
            self._publishing = _Publishing(order, self._crowd, self._recorder)
        elif isinstance(order, Echo):
            self._echo = order
        elif isinstance(order, Collect):
            self._tick(now, order.number)
        else:
            self._over = True

    def _timeout(self) -> float:
        """Seconds until something is to be done, whatever arrives."""
        now = time.monotonic_ns()
        wait = self._next_tick - now
        if self._publishing is not None:
            wait = min(wait, self._publishing.next_at - now)
        if self._echo is not None:
            wait = min(wait, (self._echo.until if self._crowd and self._crowd.echoing else self._echo.since) - now)
        return max(wait / 1e9, PACE)

    def _act(self, crowd: Crowd, now: int) -> None:
        if now >= self._next_tick:
            self._tick(now)
        if self._connecting and crowd.settled:
            self._connecting = False
            self._tick(now)
            self.reply(Connected(len(crowd.ready), dict(crowd.refused), crowd.server, self._began, now))
        if self._publishing is not None and self._publishing.act(now):
            self._publishing = None
            self._finish(now)
        if self._echo is not None:
            self._act_on_echo(crowd, self._echo, now)

    def _act_on_echo(self, crowd: Crowd, order: Echo, now: int) -> None:
        if not crowd.echoing and now >= order.since:
            crowd.echoing = True
            self._recorder.sent += len(crowd.ready)
            for client in list(crowd.ready.values()):
                crowd.send_stamped(client)
        elif now >= order.until:
            crowd.echoing, self._echo = False, None
            self._finish(now)

    def _finish(self, now: int) -> None:
        self._tick(now)
        self.reply(Finished())

    def _tick(self, now: int, number: int = 0) -> None:
        crowd = self._crowd
        assert crowd is not None
        self.reply(self._recorder.tick(now, len(crowd.ready), crowd.lost, number))
        self._next_tick = (now // SLOT + 1) * SLOT


class _Publishing:
    """Messages from one client, at a rate, as long as the server takes them."""

    def __init__(self, order: Publish, crowd: Crowd, recorder: Recorder) -> None:
        self._order = order
        self._crowd = crowd
        self._recorder = recorder
        self._client: Client = crowd.ready[min(crowd.ready)]
        self._due = 0.0  # messages that are sent or given up
        self.next_at = order.since

    def act(self, now: int) -> bool:
        """Send what is due at `now`. Returns whether it is over."""
        order, client = self._order, self._client
        if now < order.since:
            return False
        if client.number not in self._crowd.ready:
            return True
        over = now >= order.until
        if client.out and not over:  # the server pushes back
            self.next_at = now + SLOT
            return False
        wanted = (min(now, order.until) - order.since) / 1e9 * order.rate
        self._due = max(self._due, wanted - order.rate * CATCH_UP)
        stamped, frames, size = client.stamped, list[bytes](), 0
        assert stamped is not None
        while self._due < wanted and size < BURST and not over:
            frames.append(stamped.frame(now))
            size += len(frames[-1])
            self._due += 1
        if frames:
            self._recorder.sent += len(frames)
            self._crowd.send(client, b"".join(frames))
        self.next_at = order.since + int(self._due / order.rate * 1e9) + 1
        return over and (not client.out or now > order.until + PATIENCE)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # nothing here makes cycles, and a collection among thousands of sockets shows in the latencies
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    worker = Worker(sys.stdin.fileno(), sys.stdout.fileno())
    try:
        worker.reply(Ready())
        worker.run()
    except BenchError as error:
        worker.reply(Failed(str(error)))
    except BrokenPipeError:
        pass  # the parent is gone


if __name__ == "__main__":
    main()
