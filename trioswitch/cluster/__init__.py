"""Several nodes as one server: a node is one switch, and the broker carries messages between them.

cluster       the parts of a node, put together
messages      what nodes tell each other, and its bytes
link          a node's connection to the broker: batches out, topics as they are needed, messages in
roster        which nodes there are
relay         the messages of rooms: `live` those that have no offset, `committed` those of rooms with history
shared_state  what each node knows of the parts of all, by topic; `presence` is made of it
users         direct messages, groups and broadcasts to users of other nodes
groups        who is in which group
sessions      sessions that are resumed on another node
"""
