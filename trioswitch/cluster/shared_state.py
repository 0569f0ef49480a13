"""State that the nodes share by topic: each node has a part of it, which only that node changes, and which all nodes that
subscribe to the topic know.

A part is a number for each key: the connections of a user in a room, say. Changes have a version, so that a node which missed
one asks for the whole part. A node asks for all parts when it subscribes to a topic, and when it is connected again. As a broker
may lose messages without a word, versions are told again now and then. The part of a node that has ended is forgotten.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import attrs
import trio

from .._util.expiry import DueQueue
from .._util.wakeup import Wakeup
from ..errors import BrokerError
from .link import Link
from .messages import Ask, Changes
from .roster import Roster

__all__ = ["SharedState"]

ANSWER_TIME: Final = 1.0
"""Seconds within which nodes answer. A node that does not has nothing to do with the topic any more, or is dead."""

REPEAT_INTERVAL: Final = 15.0
"""Seconds after which a node tells the version of its part again, in case that the broker has lost something."""
REPEAT_STEPS: Final = 30
"""Parts into which the topics are divided for that, so that not all are told at once."""
SILENT: Final = 3 * REPEAT_INTERVAL
"""Seconds after which a node is asked whose part was not heard of."""

OnChange = Callable[[str, str, str, int, bool], None]


@attrs.define(eq=False)
class _Part:
    """What is known of another node's part."""

    version: int = 0
    values: dict[str, int] = attrs.field(factory=dict)
    heard_at: float = attrs.field(factory=trio.current_time)


@attrs.define(eq=False)
class _Topic:
    version: int = 0
    dirty: dict[str, int] = attrs.field(factory=dict)
    parts: dict[str, _Part] = attrs.field(factory=dict)
    answered: set[str] | None = None
    """Nodes that have told their parts since all were asked."""
    expected: int | None = None
    """How many will; None: they were not asked yet."""

    @property
    def known(self) -> bool:
        return self.expected is not None and len(self.answered or ()) >= self.expected


class SharedState:
    """The shared state of all topics of one kind, `room` say. `run` and `run_repeating` are its tasks.

    `snapshot(topic)` makes the whole of this node's part. `on_attached(topic)` is called as that of `Link.want`.
    `on_change(topic, node, key, value, is_new)` is called when a key of another node's part has another value, 0 if it is gone;
    `is_new` says that it has just happened, rather than that this node has just learned of it.
    """

    def __init__(
        self,
        link: Link,
        roster: Roster,
        kind: str,
        snapshot: Callable[[str], dict[str, int]],
        on_attached: Callable[[str], None],
        on_change: OnChange,
    ) -> None:
        self._link = link
        self._snapshot = snapshot
        self._on_attached = on_attached
        self._ask_all = self._ask  # one object for all topics: there may be one for each user
        self._on_change = on_change
        self._topics: dict[str, _Topic] = {}
        self._dirty: dict[str, None] = {}
        self._to_answer: dict[str, None] = {}  # topics of which somebody has asked for the whole
        self._silent: DueQueue[tuple[str, str], None] = DueQueue()  # parts asked for, until they are forgotten
        self._to_send = Wakeup()
        self._answered = Wakeup()
        link.on(kind, Changes, self._on_changes)
        link.on(kind, Ask, self._on_ask)
        roster.on_left(self._forget_node)

    # --- this node's part

    def open(self, topic: str) -> None:
        """Take part in a topic."""
        self._topics[topic] = _Topic()
        self._link.want(topic, self._ask_all)

    def close(self, topic: str) -> None:
        """Take part no more: this node's part is empty, and nothing is known of the others."""
        state = self._topics.pop(topic)
        self._dirty.pop(topic, None)
        if state.version:
            self._link.send(topic, Changes(state.version + 1, {}, full=True))
        self._link.unwant(topic)
        self._answered.notify()

    def changed(self, topic: str, key: str, value: int) -> None:
        """A key of this node's part has another value; 0: it is gone."""
        self._topics[topic].dirty[key] = value
        self._dirty[topic] = None
        self._to_send.notify()

    async def run(self) -> None:
        """The task that sends changes, and forgets parts of nodes that do not answer."""
        while True:
            dirty, self._dirty = self._dirty, {}
            for topic in dirty:
                self._send_changes(topic)
            to_answer, self._to_answer = self._to_answer, {}
            for topic in to_answer:  # all who have asked until now get the same answer
                self._send_whole(topic)
            self._forget_silent()
            with trio.move_on_at(self._silent.next_due()):
                if not (self._dirty or self._to_answer):
                    await self._to_send.wait()
            await trio.lowlevel.checkpoint()

    async def run_repeating(self) -> None:
        """The task that tells the versions of this node's parts again, and asks for parts that were not heard of."""
        while True:
            topics = list(self._topics.items())
            for start in range(0, max(len(topics), 1), max(len(topics) // REPEAT_STEPS, 1)):
                await trio.sleep(REPEAT_INTERVAL / REPEAT_STEPS)
                for topic, state in topics[start : start + max(len(topics) // REPEAT_STEPS, 1)]:
                    if self._topics.get(topic) is state:
                        self._repeat(topic, state)

    def _repeat(self, topic: str, state: _Topic) -> None:
        if state.version and state.parts:  # where no other node is known, there is none, or it repeats itself
            self._link.send(topic, Changes(state.version, {}))
        silent = trio.current_time() - SILENT
        for node in [node for node, part in state.parts.items() if part.heard_at < silent]:
            self._ask_again(topic, node)

    def _send_changes(self, topic: str) -> None:
        state = self._topics.get(topic)
        if state is None:
            return
        values, state.dirty = state.dirty, {}
        if values:
            state.version += 1
            full = state.version == 1
            self._link.send(topic, Changes(state.version, self._snapshot(topic) if full else values, full))

    def _send_whole(self, topic: str) -> None:
        self._send_changes(topic)  # those that nobody knows of yet: they have just happened
        state = self._topics.get(topic)
        if state is not None:
            state.version += 1
            self._link.send(topic, Changes(state.version, self._snapshot(topic), full=True, known=True))
        elif self._link.attached(topic):  # nobody is there any more
            self._link.send(topic, Changes(0, {}, full=True, known=True))

    # --- the parts of others

    def others(self, topic: str) -> Mapping[str, Mapping[str, int]]:
        """The parts of other nodes, by node."""
        state = self._topics.get(topic)
        return {} if state is None else {node: part.values for node, part in state.parts.items()}

    async def wait_known(self, topic: str) -> None:
        """Wait until the other nodes have told their parts, or had the time to. Safe to cancel."""
        with trio.move_on_after(ANSWER_TIME):
            while (state := self._topics.get(topic)) is not None and self._link.connected and not state.known:
                await self._answered.wait()

    def is_known(self, topic: str) -> bool:
        """Whether the other nodes have told their parts."""
        state = self._topics.get(topic)
        return state is not None and state.known

    def _ask(self, topic: str) -> None:
        """The topic is attached: tell our part, and ask all others for theirs."""
        state = self._topics[topic]
        for node in state.parts:
            self._await_answer(topic, node)
        state.answered = state.expected = None
        if state.version:
            self._send_whole(topic)
        self._link.send(topic, Ask(), partial(self._asked, state))
        self._on_attached(topic)

    def _await_answer(self, topic: str, node: str) -> None:
        self._silent.add((topic, node), None, trio.current_time() + ANSWER_TIME)
        self._to_send.notify()

    def _ask_again(self, topic: str, node: str) -> None:
        """Ask a node for its part, of which something is missing."""
        if (topic, node) not in self._silent:
            self._await_answer(topic, node)
            self._link.send(topic, Ask(of=node))

    def _asked(self, state: _Topic, error: BrokerError | None, receivers: int | None) -> None:
        """The question was sent. Answers may have come before this is known."""
        if error is None:
            state.expected = len(state.parts) if receivers is None else receivers - 1
            self._answered.notify()

    def _on_ask(self, node: str, topic: str, ask: Ask) -> None:
        if node != self._link.node and ask.of in ("", self._link.node):
            self._to_answer[topic] = None
            self._to_send.notify()

    def _on_changes(self, node: str, topic: str, changes: Changes) -> None:
        state = self._topics.get(topic)
        if state is None or node == self._link.node:
            return
        part = state.parts.get(node)
        if part is None:
            part = state.parts[node] = _Part()
        part.heard_at = trio.current_time()
        if changes.full:
            self._silent.remove((topic, node))
            if changes.known:
                state.answered = (state.answered or set()) | {node}
                self._answered.notify()
            gone = {key: 0 for key in part.values if key not in changes.values}
            values = gone | changes.values
        elif not changes.values and changes.version == part.version:
            return  # as we know
        elif changes.values and changes.version == part.version + 1:
            values = changes.values
        else:
            self._ask_again(topic, node)
            return
        part.version = changes.version
        self._apply(topic, node, part, values, is_new=not changes.known)
        if not part.values and changes.full:
            state.parts.pop(node, None)

    def _apply(self, topic: str, node: str, part: _Part, values: Mapping[str, int], is_new: bool) -> None:
        for key, value in values.items():
            if value != part.values.get(key, 0):
                if value:
                    part.values[key] = value
                else:
                    del part.values[key]
                self._on_change(topic, node, key, value, is_new)

    def _forget_silent(self) -> None:
        """Forget parts that were asked for, and did not come; without a connection, they will be asked for again."""
        for (topic, node), _ in self._silent.pop_due(trio.current_time()):
            state = self._topics.get(topic)
            if state is not None and node in state.parts and self._link.connected:
                self._forget_part(topic, state, node)

    def _forget_node(self, node: str) -> None:
        for topic, state in self._topics.items():
            if node in state.parts:
                self._forget_part(topic, state, node)

    def _forget_part(self, topic: str, state: _Topic, node: str) -> None:
        part = state.parts.pop(node)
        self._apply(topic, node, part, dict.fromkeys(part.values, 0), is_new=True)
