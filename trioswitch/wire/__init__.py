"""Bytes and messages. Nothing here imports trio, reads a clock or does I/O.

messages    the client protocol's messages: commands come in, events go out
protocols   one object for each client protocol: bytes <-> messages
prepared    one message, encoded at most once for each format
frames      the bytes of server frames, permessage-deflate shared by all receivers
websocket   the handshake and the frames of one client, on websockets' sans-I/O protocol
batch       which queued messages go into the next write
"""
