"""Redis, as far as the store and the broker on it need it.

url         the URL of a server, of sentinels, or of a Redis Cluster
connection  one connection: commands of all tasks go out together
discovery   which server to use
client      a connection that is made again when it is lost, to the server that is the primary then
"""
