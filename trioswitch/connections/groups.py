"""Groups of users: who is in which. Only the application changes them."""

__all__ = ["Groups"]


class Groups:
    """Which users are in which groups, whether they are online or not. An empty group does not exist."""

    def __init__(self) -> None:
        self._users: dict[str, set[str]] = {}

    def __len__(self) -> int:
        return len(self._users)

    def add(self, group: str, user: str) -> None:
        self._users.setdefault(group, set()).add(user)

    def remove(self, group: str, user: str) -> None:
        users = self._users.get(group)
        if users is not None:
            users.discard(user)
            if not users:
                del self._users[group]

    def users(self, group: str) -> frozenset[str]:
        return frozenset(self._users.get(group, ()))
