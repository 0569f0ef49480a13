"""Wall time, for what a person reads. Durations and deadlines use `trio.current_time()`."""

from datetime import UTC, datetime

__all__ = ["timestamp"]


def timestamp() -> str:
    """Now, as ISO 8601 in UTC with milliseconds: `2026-11-20T22:41:04.123Z`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
