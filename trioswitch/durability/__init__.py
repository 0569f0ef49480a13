"""What outlives a connection: stored messages, recovery, sessions, inboxes, idempotency keys."""
