"""Whether the store works: logged once when it stops, shown by `/health`, and logged when it works again."""

import logging

from ..errors import StoreError

__all__ = ["StoreHealth"]

_log = logging.getLogger(__name__)


class StoreHealth:
    """What calls to the store have found, by kind of operation: `writing`, `reading`, `sweeping`."""

    def __init__(self) -> None:
        self._errors: dict[str, str] = {}

    @property
    def error(self) -> str | None:
        """Why the store does not work, in a sentence; None while it does."""
        return next(iter(self._errors.values()), None)

    def failed(self, error: StoreError, operation: str = "writing") -> None:
        """An operation has failed: `error` says why until one of its kind succeeds."""
        if operation not in self._errors:
            _log.error("the store does not work (%s): %s", operation, error)
        self._errors[operation] = str(error)

    def works(self, operation: str = "writing") -> None:
        """An operation has succeeded."""
        if self._errors.pop(operation, None) is not None:
            _log.info("the store works again (%s)", operation)
