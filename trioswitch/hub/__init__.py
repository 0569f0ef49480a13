"""The hub of one machine: processes meet at a Unix socket, behind which are a store and a broker (`serve --workers`).

protocol    frames, and the calls of a store
server      the hub: it owns the store, and delivers what is published
client      a process's connection to it: a `Store` and a `Broker`
"""
