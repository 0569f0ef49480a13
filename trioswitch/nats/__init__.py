"""NATS, as far as the broker needs it.

url         the URL of one server or of several
connection  one connection: commands out, messages in
"""
