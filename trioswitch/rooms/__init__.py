"""Rooms: members, windows and their fan-out, history in memory, subscriptions; and the directory of all rooms."""
