"""PostgreSQL on Trio, for the store and the broker on it.

url         the URL of a server, or of several of which one is the primary
connection  psycopg's connection, which waits with Trio (needs the extra `postgres`)
client      a few connections that are made again when they are lost
"""
