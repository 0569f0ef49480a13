"""Several nodes as one server: a node is one switch, and the broker carries messages between them.

messages    what nodes tell each other, and its bytes
link        a node's connection to the broker: batches out, topics as they are needed, messages in
roster      which nodes there are
relay       what is published to rooms, and positions in their histories
presence    which users of other nodes are in a room
users       direct messages to users of other nodes
"""
