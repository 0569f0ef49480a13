"""Helpers that know nothing of the server: clocks, supervised tasks, wake-ups, expiry queues, memory of the process."""
