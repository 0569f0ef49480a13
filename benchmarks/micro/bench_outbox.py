"""The way out of a connection: written through, queued, and taken in batches."""

from typing import Any

import pytest
from micro_support import Sink, chat, in_trio, outbox_on

from trioswitch.config import Overflow
from trioswitch.connections.outbox import OfferResult
from trioswitch.wire.batch import BatchQueue
from trioswitch.wire.windows import QueuedMessage, Window

NOW = "2026-01-01T00:00:00.000000Z"
COUNTS = pytest.mark.parametrize("count", [1, 16, 256])


@pytest.mark.benchmark(group="outbox: deliver a window that is encoded already")
@COUNTS
def bench_deliver(benchmark: Any, count: int) -> None:
    def measure() -> None:
        sink = Sink()
        outbox = outbox_on(sink)
        window = Window([chat() for _ in range(count)], NOW)
        assert benchmark(outbox.deliver, window)
        assert sink.written

    in_trio(measure)


@pytest.mark.benchmark(group="outbox: offer a message")
def bench_offer_written(benchmark: Any) -> None:
    def measure() -> None:
        outbox, message = outbox_on(Sink()), chat()
        assert benchmark(outbox.offer, message, Overflow.DROP_OLDEST) is OfferResult.WRITTEN

    in_trio(measure)


@pytest.mark.benchmark(group="outbox: offer a message")
@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST], ids=lambda policy: policy.value)
def bench_offer_full(benchmark: Any, overflow: Overflow) -> None:
    def measure() -> None:
        outbox, message = outbox_on(Sink(full=True)), chat()
        for _ in range(3000):
            outbox.offer(message, overflow)
        assert benchmark(outbox.offer, message, overflow) in (OfferResult.QUEUED, OfferResult.DROPPED)

    in_trio(measure)


@pytest.mark.benchmark(group="outbox: take a window when it is full")
@COUNTS
def bench_take_full(benchmark: Any, count: int) -> None:
    def measure() -> None:
        outbox, window = outbox_on(Sink(full=True)), Window([chat() for _ in range(count)], NOW)
        wanted = range(count)
        for _ in range(3000 // count):
            outbox.enqueue(window, wanted, Overflow.DROP_OLDEST)
        assert benchmark(outbox.enqueue, window, wanted, Overflow.DROP_OLDEST) == (OfferResult.QUEUED, count)

    in_trio(measure)


@pytest.mark.benchmark(group="batch: queue messages and take them")
@COUNTS
@pytest.mark.parametrize("priorities", [1, 3])
def bench_take(benchmark: Any, count: int, priorities: int) -> None:
    entries = [QueuedMessage(chat(priority=number % priorities), 120, 0.0) for number in range(count)]

    def queue_and_take() -> int:
        queue = BatchQueue(64, 65536, 0.0)
        for entry in entries:
            queue.add(entry)
        taken = 0
        while queue.count:
            taken += len(queue.take(1.0).batch)
        return taken

    assert benchmark(queue_and_take) == count
