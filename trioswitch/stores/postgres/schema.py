"""The tables of the store, and the functions that write them: each call of a function is one transaction.

Names, keys and payloads are bytes: text of PostgreSQL cannot hold every character. Functions that write take a lock first
(`pg_advisory_xact_lock`), so that offsets are committed in their order, and no two of them wait for each other.
"""

from typing import Final

from .inboxes import INBOX_FUNCTIONS
from .rooms import ROOM_FUNCTIONS

__all__ = ["SCHEMA", "VERSION"]

VERSION: Final = 1

_TABLES: Final = """
CREATE TABLE S.rooms (
    name bytea PRIMARY KEY, epoch text NOT NULL, first bigint NOT NULL, last bigint NOT NULL,
    age float8, at float8 NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE S.messages (
    room bytea NOT NULL, number bigint NOT NULL, payload bytea NOT NULL, at float8 NOT NULL, expires_at float8,
    sender bytea NOT NULL, PRIMARY KEY (room, number)
);
CREATE INDEX messages_expiring ON S.messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE S.room_keys (
    room bytea NOT NULL, key bytea NOT NULL, number bigint NOT NULL, at float8 NOT NULL, PRIMARY KEY (room, key)
);
CREATE INDEX room_keys_at ON S.room_keys (at);
CREATE TABLE S.inboxes (
    name bytea PRIMARY KEY, last bigint NOT NULL, at float8 NOT NULL, messages bigint NOT NULL, bytes bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE S.inbox_messages (
    inbox bytea NOT NULL, number bigint NOT NULL, payload bytea NOT NULL, at float8 NOT NULL, expires_at float8,
    sender bytea NOT NULL, PRIMARY KEY (inbox, number)
);
CREATE INDEX inbox_messages_expiring ON S.inbox_messages (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX inbox_messages_at ON S.inbox_messages (at);
CREATE TABLE S.inbox_keys (
    inbox bytea NOT NULL, key bytea NOT NULL, number bigint NOT NULL, at float8 NOT NULL, PRIMARY KEY (inbox, key)
);
CREATE INDEX inbox_keys_at ON S.inbox_keys (at);
CREATE TABLE S.forgotten (last bigint NOT NULL);
INSERT INTO S.forgotten VALUES (0);
CREATE TABLE S.usage (
    kind text NOT NULL, sender bytea NOT NULL, bytes bigint NOT NULL, PRIMARY KEY (kind, sender)
) WITH (fillfactor = 50);
INSERT INTO S.usage VALUES ('rooms', '', 0), ('inboxes', '', 0);
CREATE TABLE S.sessions (id bytea PRIMARY KEY, payload bytea NOT NULL, expires_at float8 NOT NULL);
CREATE INDEX sessions_expiring ON S.sessions (expires_at);
CREATE TABLE S.groups (name bytea NOT NULL, member bytea NOT NULL, PRIMARY KEY (name, member));
"""
"""In `usage`, the empty sender stands for all together."""

_FUNCTIONS: Final = """
CREATE FUNCTION S.lock(_kind text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtext('S'), hashtext(_kind))
$$;

CREATE FUNCTION S.add_bytes(_kind text, _sender bytea, _bytes bigint) RETURNS void LANGUAGE sql AS $$
    INSERT INTO S.usage VALUES (_kind, _sender, _bytes)
    ON CONFLICT (kind, sender) DO UPDATE SET bytes = usage.bytes + excluded.bytes
$$;

CREATE FUNCTION S.bytes_of(_kind text, _sender bytea) RETURNS bigint LANGUAGE sql AS $$
    SELECT coalesce((SELECT bytes FROM S.usage WHERE kind = _kind AND sender = _sender), 0)
$$;

CREATE FUNCTION S.set_bytes(_kind text, _senders bytea[], _bytes bigint[]) RETURNS void LANGUAGE sql AS $$
    INSERT INTO S.usage SELECT _kind, * FROM unnest(_senders, _bytes)
    ON CONFLICT (kind, sender) DO UPDATE SET bytes = excluded.bytes WHERE usage.bytes <> excluded.bytes
$$;

CREATE FUNCTION S.refusal(_size bigint, _free bigint, _of_sender bigint) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    -- `stores.port.refusal`; without a sender: the server itself.
    IF _size > _free THEN
        RETURN 'total';
    ELSIF _of_sender + _size > _free THEN
        RETURN 'sender';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION S.sweep_rest(_now float8, _keys_before float8) RETURNS void LANGUAGE sql AS $$
    DELETE FROM S.room_keys WHERE at < _keys_before;
    DELETE FROM S.inbox_keys WHERE at < _keys_before;
    DELETE FROM S.sessions WHERE expires_at <= _now;
    DELETE FROM S.usage WHERE bytes = 0 AND sender <> '';
$$;
"""

SCHEMA: Final = _TABLES + _FUNCTIONS + ROOM_FUNCTIONS + INBOX_FUNCTIONS
"""For `postgres.client.create_schema`."""
