"""The roster: which nodes there are. Each says every other second that it lives; one that is silent for too long is dead.

The same messages prove that the connection to the broker works, from end to end: a node waits for its own.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import trio

from .._util import clock
from ..version import __version__
from .link import Link
from .messages import ALL, Beat, Leaving, node_topic

__all__ = ["BEAT_INTERVAL", "NodeInfo", "Roster"]

_log = logging.getLogger(__name__)

LATE: Final = 0.5
"""Seconds that this node may be behind before it does not count against the broker and the others, that it has heard nothing."""
MAX_SKEW: Final = 5.0
"""Seconds by which the clocks of nodes may differ before one is told: that is more than a sign of life is on its way."""
BEAT_INTERVAL: Final = 2.0
"""Seconds between two signs of life."""
ECHO_TIMEOUT: Final = 3 * BEAT_INTERVAL
"""Seconds after which a node that has not heard its own signs of life gives its connection to the broker up."""


@attrs.frozen
class NodeInfo:
    """What is known of a node of the cluster."""

    id: str
    name: str
    """As the operator calls it (`node_name`); its id, by default."""
    version: str
    started: float
    """Seconds of wall time, by the node's own clock."""
    statistics: Mapping[str, int]
    """At its last sign of life: `connections`, `users`, `rooms`, `messages_sent`, `bytes_sent`, `pending_messages`,
    `pending_bytes` and `drops`, as in `SwitchStatistics`; other versions may tell others."""


class Roster:
    """The nodes of the cluster, this one included. `run` is its task.

    A node is dead when it was silent for `timeout` seconds. While this node has no connection to the broker, it knows nothing of
    the others, and leaves them as they were.
    """

    def __init__(self, link: Link, name: str, timeout: float, statistics: Callable[[], dict[str, int]]) -> None:
        self._link = link
        self._name = name
        self._timeout = timeout
        self._statistics = statistics
        self._started = clock.wall_time()
        self._others: dict[str, NodeInfo] = {}
        self._heard: dict[str, float] = {}  # when each was last heard
        self._echo_at = 0.0
        self._on_left: list[Callable[[str], None]] = []
        link.on(ALL, Beat, self._on_beat)
        link.on(ALL, Leaving, self._on_leaving)
        link.on_change(self._on_connected)
        link.want(ALL, lambda _topic: self._beat())
        link.want(node_topic(link.node))

    def on_left(self, callback: Callable[[str], None]) -> None:
        """Have this called with the id of a node that was not heard for `timeout` seconds: it is dead, or has ended."""
        self._on_left.append(callback)

    @property
    def others(self) -> Mapping[str, NodeInfo]:
        """The other nodes, by id."""
        return self._others

    def nodes(self) -> list[NodeInfo]:
        """All nodes, this one first."""
        return [self._info(self._beat_message(), self._link.node), *self._others.values()]

    async def run(self) -> None:
        """The task that sends signs of life, and looks for nodes that are silent."""
        self._echo_at = trio.current_time()
        while True:
            self._beat()
            began = trio.current_time()
            await trio.sleep(BEAT_INTERVAL)
            now = trio.current_time()
            if (late := now - began - BEAT_INTERVAL) > LATE:  # this node had no time to listen
                self._echo_at += late
                self._heard = {node: heard + late for node, heard in self._heard.items()}
            if not self._link.connected:
                continue
            if now - self._echo_at > ECHO_TIMEOUT:
                self._echo_at = now
                self._link.drop_connection("what this node publishes does not come back")
                continue
            for node in [node for node, heard in self._heard.items() if now - heard > self._timeout]:
                if node in self._others:
                    name = self._others[node].name
                    _log.warning("node %s (%s) was silent for %g s: it is taken for dead", name, node, self._timeout)
                self._remove(node)

    async def leave(self) -> None:
        """Tell the others that this node ends, if they can be told. Safe to cancel."""
        await self._link.publish_now(ALL, Leaving())

    def _beat_message(self) -> Beat:
        return Beat(self._name, __version__, self._started, self._statistics(), clock.wall_time())

    def _beat(self) -> None:
        self._link.send(ALL, self._beat_message())

    def _on_connected(self) -> None:
        now = self._echo_at = trio.current_time()
        self._heard = dict.fromkeys(self._heard, now)

    def _on_beat(self, node: str, _topic: str, beat: Beat) -> None:
        now = trio.current_time()
        if node == self._link.node:
            self._echo_at = now
            return
        if node not in self._others:
            _log.info("node %s (%s) is here", beat.name, node)
            if beat.now and abs(skew := beat.now - clock.wall_time()) > MAX_SKEW:
                _log.warning(
                    "the clock of node %s (%s) differs by %+.0f s: messages expire at the wrong time",
                    beat.name,
                    node,
                    skew,
                )
            self._beat()  # so that it knows of us at once
        self._others[node] = self._info(beat, node)
        self._heard[node] = now

    @staticmethod
    def _info(beat: Beat, node: str) -> NodeInfo:
        return NodeInfo(node, beat.name, beat.version, beat.started, beat.statistics)

    def _on_leaving(self, node: str, _topic: str, _leaving: Leaving) -> None:
        if node in self._others:
            _log.info("node %s (%s) has ended", self._others[node].name, node)
            del self._others[node]  # its users have left when they do not come to another node in time

    def _remove(self, node: str) -> None:
        self._others.pop(node, None)
        del self._heard[node]
        for callback in self._on_left:
            callback(node)
