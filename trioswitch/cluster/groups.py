"""Groups across nodes: the store keeps them, every node knows them, and a change is told to all."""

from typing import Final

import trio

from .._util.wakeup import Wakeup
from ..connections.groups import Groups
from ..durability.store_health import StoreHealth
from ..errors import StoreError
from ..stores.port import GroupChange, Store
from .link import Link
from .messages import ALL, GroupChanged

__all__ = ["ClusterGroups"]

RETRY_DELAY: Final = 1.0
"""Seconds after which a store that has failed is tried again."""


class ClusterGroups:
    """Keeps the groups of this node as those of the cluster. `run` is its task."""

    def __init__(self, link: Link, store: Store, health: StoreHealth, groups: Groups) -> None:
        self._link = link
        self._store = store
        self._health = health
        self._groups = groups
        self._to_save: list[GroupChange] = []
        self._to_load = True
        self._heard: list[GroupChange] | None = None  # changes on other nodes, while all groups are loaded
        self._wakeup = Wakeup()
        groups.on_change(self._on_change)
        link.on(ALL, GroupChanged, self._on_group_changed)
        link.on_change(self._connected)

    def _on_change(self, group: str, user: str, added: bool) -> None:
        """The application has changed a group on this node."""
        self._to_save.append(GroupChange(group, user, added))
        self._wakeup.notify()

    def _on_group_changed(self, node: str, _topic: str, changed: GroupChanged) -> None:
        if node != self._link.node:
            if self._heard is not None:
                self._heard.append(GroupChange(changed.group, changed.user, changed.added))
            self._groups.apply(changed.group, changed.user, changed.added)

    def _connected(self) -> None:
        """Changes may have been missed."""
        self._to_load = True
        self._wakeup.notify()

    async def run(self) -> None:
        """The task that saves changes, tells the other nodes, and loads all groups after a loss of the connection."""
        while True:
            try:
                if self._to_save:
                    changes, self._to_save = self._to_save, []
                    try:
                        await self._store.change_groups(changes)
                    except BaseException:
                        self._to_save = changes + self._to_save
                        raise
                    for change in changes:
                        self._link.send(ALL, GroupChanged(change.group, change.user, change.added))
                elif self._to_load:
                    self._to_load = False
                    heard = self._heard = []
                    loaded = await self._store.read_groups()
                    self._groups.replace(loaded)
                    for change in [*heard, *self._to_save]:  # they may be newer than what was read
                        self._groups.apply(change.group, change.user, change.added)
            except StoreError as error:
                self._to_load = True
                self._health.failed(error, "groups")
                await trio.sleep(RETRY_DELAY)
                continue
            finally:
                self._heard = None
            self._health.works("groups")
            while not self._to_save and not self._to_load:
                await self._wakeup.wait()
