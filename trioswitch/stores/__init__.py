"""Stores keep the messages of rooms with history and the inboxes of users who are offline.

port      the interface of a store, which every engine implements
memory    an engine that lives as long as the process
sqlite    an engine that keeps one file; what was acknowledged survives a crash and a power failure
redis     an engine that several machines share
postgres  an engine that several machines share
open      from a store's URL to the store
"""

from .memory import MemoryStore
from .open import open_store
from .port import (
    Append,
    Appended,
    GroupChange,
    HistoryRecords,
    InboxLimits,
    InboxMessage,
    InboxResult,
    Record,
    Retention,
    SavedSession,
    Store,
    StoredInboxMessage,
)
from .sqlite.store import SqliteStore

__all__ = [
    "Append",
    "Appended",
    "GroupChange",
    "HistoryRecords",
    "InboxLimits",
    "InboxMessage",
    "InboxResult",
    "MemoryStore",
    "Record",
    "Retention",
    "SavedSession",
    "SqliteStore",
    "Store",
    "StoredInboxMessage",
    "open_store",
]
