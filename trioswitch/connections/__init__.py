"""One connection: its nursery, its outbox and flusher, its heartbeats; and the directory of all connections, users and groups."""
