"""Transports carry connections.

port            the interface between a connection and what carries it
native          own sockets and any Trio stream, with a sans-I/O WebSocket codec
trio_websocket  a connection that a program accepted with trio-websocket
streams, tls    bytes in and out: plain sockets, TLS, any Trio stream
reactor         one epoll object and one task that read the sockets of all connections
"""
