"""Questions to all nodes at once, as an operator asks them: what each of them does or knows, gathered for a moment."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import trio

from .link import Link
from .messages import ALL, Found, Survey, node_topic
from .roster import Roster

__all__ = ["Surveys"]

_log = logging.getLogger(__name__)

ANSWER_TIME: Final = 2.0
"""Seconds in which the other nodes answer; a node that does not is left out."""

MAX_WAITING: Final = 100
"""Questions of other nodes that wait here. Who asks more gets no answer from this node."""

Answerer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""From the name of a question and its arguments to this node's answer, which MessagePack can carry; None: it has none."""


@attrs.define(eq=False)
class _Open:
    """A question that is asked now."""

    waiting_for: set[str]
    found: list[Any] = attrs.field(factory=list)
    complete: trio.Event = attrs.field(factory=trio.Event)


class Surveys:
    """Asks the other nodes, and answers theirs with what `answer_by` was given. `run` is its task."""

    def __init__(self, link: Link, roster: Roster) -> None:
        self._link = link
        self._roster = roster
        self._answer: Answerer | None = None
        self._open: dict[int, _Open] = {}
        self._last = 0
        self._put, self._asked = trio.open_memory_channel[tuple[str, Survey]](MAX_WAITING)
        link.on(ALL, Survey, self._on_survey)
        link.on("node", Found, self._on_found)

    def answer_by(self, answer: Answerer) -> None:
        self._answer = answer

    async def ask(self, name: str, arguments: Mapping[str, Any]) -> list[Any]:
        """The answers of all other nodes that answer in time. Safe to cancel."""
        others = set(self._roster.others)
        if not others or not self._link.connected:
            return []
        self._last += 1
        question, open = self._last, _Open(others)
        self._open[question] = open
        try:
            self._link.send(ALL, Survey(question, name, dict(arguments)))
            with trio.move_on_after(ANSWER_TIME) as patience:
                await open.complete.wait()
            if patience.cancelled_caught:
                _log.warning("%d nodes have not answered within %g s", len(open.waiting_for), ANSWER_TIME)
            return open.found
        finally:
            del self._open[question]

    def _on_survey(self, node: str, _topic: str, survey: Survey) -> None:
        if node == self._link.node:
            return
        try:
            self._put.send_nowait((node, survey))
        except trio.WouldBlock:
            _log.warning("a question of another node is not answered: %d wait already", MAX_WAITING)

    async def run(self) -> None:
        """The task that answers the other nodes, one question after the other."""
        async for node, survey in self._asked:
            if self._answer is not None:
                answer = await self._answer(survey.name, survey.arguments)
                self._link.send(node_topic(node), Found(survey.question, answer))

    def _on_found(self, node: str, _topic: str, found: Found) -> None:
        open = self._open.get(found.question)
        if open is not None and node in open.waiting_for:
            open.waiting_for.discard(node)
            open.found.append(found.answer)
            if not open.waiting_for:
                open.complete.set()
