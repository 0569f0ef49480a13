"""A store in a PostgreSQL database, shared by nodes on several machines.

schema   the tables, and the functions that the others use
rooms    the functions of the database for the messages of rooms
inboxes  those for inbox messages
store    the store, which calls them
"""
