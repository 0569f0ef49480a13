"""Groups of users: who is in which. Only the application changes them."""

from collections.abc import Callable, Iterable

__all__ = ["Groups"]


class Groups:
    """Which users are in which groups, whether they are online or not. An empty group does not exist."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}
        self._on_change: Callable[[str, str, bool], None] = lambda _group, _user, _added: None

    def on_change(self, callback: Callable[[str, str, bool], None]) -> None:
        """Have this called with the group, the user, and whether it was added, when the application changes a group."""
        self._on_change = callback

    def __len__(self) -> int:
        return len(self._users)

    def add(self, group: str, user: str) -> None:
        self.apply(group, user, added=True)
        self._on_change(group, user, True)

    def remove(self, group: str, user: str) -> None:
        self.apply(group, user, added=False)
        self._on_change(group, user, False)

    def apply(self, group: str, user: str, added: bool) -> None:
        """Change a group as another node has."""
        if added:
            self._users.setdefault(group, set()).add(user)
            return
        users = self._users.get(group)
        if users is not None:
            users.discard(user)
            if not users:
                del self._users[group]

    def replace(self, all_groups: Iterable[tuple[str, str]]) -> None:
        """Take these instead: a group and a user of it, each."""
        self._users = {}
        for group, user in all_groups:
            self._users.setdefault(group, set()).add(user)

    def users(self, group: str) -> frozenset[str]:
        return frozenset(self._users.get(group, ()))
