"""The tables of the store, and the functions that write them: each call of a function is one transaction.

Names, keys and payloads are bytes: text of PostgreSQL cannot hold every character. Functions that write take a lock first
(`pg_advisory_xact_lock`), so that offsets are committed in their order, and no two of them wait for each other.
"""

from typing import Final

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

CREATE FUNCTION S.append(
    _rooms bytea[], _payloads bytea[], _ats float8[], _expires float8[], _senders bytea[], _keys bytea[],
    _sizes bigint[], _ages float8[], _epochs text[], _total bigint
) RETURNS TABLE (o_epoch text, o_offset bigint, o_duplicate bool, o_refusal text) LANGUAGE plpgsql AS $$
DECLARE
    _room S.rooms;  -- the last one, until it is written
    _changed bool := false;
    _names bytea[] := ARRAY[''::bytea];  -- of senders, and what each has here, written in the end
    _used bigint[];
    _place int;
    _size bigint;
    _first bigint;
    _gone record;
BEGIN
    PERFORM S.lock('rooms');
    _used := ARRAY[S.bytes_of('rooms', '')];
    FOR _i IN 1 .. coalesce(array_length(_rooms, 1), 0) LOOP
        IF _room.name IS DISTINCT FROM _rooms[_i] THEN
            IF _changed THEN
                UPDATE S.rooms SET first = _room.first, last = _room.last, age = _room.age, at = _room.at
                    WHERE name = _room.name;
                _changed := false;
            END IF;
            SELECT * INTO _room FROM S.rooms WHERE name = _rooms[_i];
        END IF;
        o_epoch := coalesce(_room.epoch, _epochs[_i]);
        o_duplicate := false;
        o_refusal := NULL;
        IF _keys[_i] IS NOT NULL THEN
            SELECT number INTO o_offset FROM S.room_keys WHERE room = _rooms[_i] AND key = _keys[_i];
            IF FOUND THEN
                o_duplicate := true;
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        o_offset := 0;
        _size := octet_length(_payloads[_i]);
        _place := array_position(_names, _senders[_i]);
        IF _place IS NULL THEN
            _place := array_length(_names, 1) + 1;
            _names[_place] := _senders[_i];
            _used[_place] := S.bytes_of('rooms', _senders[_i]);
        END IF;
        o_refusal := S.refusal(_size, _total - _used[1], CASE WHEN _place > 1 THEN _used[_place] END);
        IF o_refusal IS NOT NULL THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF _room.name IS NULL THEN
            INSERT INTO S.rooms VALUES (_rooms[_i], o_epoch, 1, 0, _ages[_i], _ats[_i]) RETURNING * INTO _room;
        END IF;
        o_offset := _room.last + 1;
        INSERT INTO S.messages VALUES (_rooms[_i], o_offset, _payloads[_i], _ats[_i], _expires[_i], _senders[_i]);
        _used[1] := _used[1] + _size;
        IF _place > 1 THEN
            _used[_place] := _used[_place] + _size;
        END IF;
        IF _keys[_i] IS NOT NULL THEN
            INSERT INTO S.room_keys VALUES (_rooms[_i], _keys[_i], o_offset, _ats[_i]);
        END IF;
        _first := greatest(_room.first, o_offset - _sizes[_i] + 1);
        IF _first > _room.first THEN
            -- From `first` on: what was deleted below it is in the index still.
            FOR _gone IN
                DELETE FROM S.messages WHERE room = _rooms[_i] AND number >= _room.first AND number < _first
                    RETURNING sender, octet_length(payload) AS size
            LOOP
                _used[1] := _used[1] - _gone.size;
                _place := array_position(_names, _gone.sender);
                IF _place IS NULL THEN
                    PERFORM S.add_bytes('rooms', _gone.sender, -_gone.size);
                ELSIF _place > 1 THEN
                    _used[_place] := _used[_place] - _gone.size;
                END IF;
            END LOOP;
        END IF;
        _room.first := _first;
        _room.last := o_offset;
        _room.age := _ages[_i];
        _room.at := greatest(_room.at, _ats[_i]);
        _changed := true;
        RETURN NEXT;
    END LOOP;
    IF _changed THEN
        UPDATE S.rooms SET first = _room.first, last = _room.last, age = _room.age, at = _room.at WHERE name = _room.name;
    END IF;
    PERFORM S.set_bytes('rooms', _names, _used);
END $$;

CREATE FUNCTION S.first_kept(_room S.rooms, _now float8) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    _young bigint;
    _kept bigint;
BEGIN
    -- The oldest offset within the retention: after the last of those that are too old in a row.
    IF _room.age IS NULL OR _room.first > _room.last THEN
        RETURN _room.first;
    ELSIF _room.at < _now - _room.age THEN
        RETURN _room.last + 1;
    END IF;
    SELECT number INTO _young FROM S.messages
        WHERE room = _room.name AND number >= _room.first AND at >= _now - _room.age ORDER BY number LIMIT 1;
    SELECT max(number) + 1 INTO _kept FROM S.messages
        WHERE room = _room.name AND number >= _room.first AND number < coalesce(_young, _room.last + 1);
    RETURN coalesce(_kept, _room.first);
END $$;

CREATE FUNCTION S.read(_name bytea, _after bigint, _limit bigint, _bytes bigint, _now float8)
RETURNS TABLE (o_epoch text, o_first bigint, o_last bigint, o_offset bigint, o_payload bytea, o_at float8, o_expires float8)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    _room S.rooms;
    _newest bool := _after IS NULL;
BEGIN
    -- The first row says where the room stands; the others are records. Without `_after`: the newest, newest first.
    SELECT * INTO _room FROM S.rooms WHERE name = _name;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    o_epoch := _room.epoch;
    o_first := S.first_kept(_room, _now);
    o_last := _room.last;
    RETURN NEXT;
    RETURN QUERY
        WITH page AS (
            SELECT number, payload, at, expires_at, CASE WHEN _newest THEN -number ELSE number END AS place FROM S.messages
            WHERE room = _name AND number >= o_first AND number > coalesce(_after, 0)
                AND (expires_at IS NULL OR expires_at > _now) AND (_room.age IS NULL OR at >= _now - _room.age)
            ORDER BY CASE WHEN _newest THEN number END DESC, number LIMIT _limit
        ), counted AS (
            SELECT *, sum(octet_length(payload)) OVER (ORDER BY place) AS upto FROM page
        )
        SELECT o_epoch, o_first, o_last, number, payload, at, expires_at FROM counted
        WHERE upto <= _bytes OR upto = octet_length(payload) ORDER BY place;
END $$;

CREATE FUNCTION S.post(
    _inboxes bytea[], _payloads bytea[], _ats float8[], _expires float8[], _senders bytea[], _keys bytea[],
    _most_messages bigint, _most_bytes bigint, _total bigint
) RETURNS TABLE (o_seq bigint, o_duplicate bool, o_refusal text) LANGUAGE plpgsql AS $$
DECLARE
    _inbox S.inboxes;
    _names bytea[] := ARRAY[''::bytea];  -- as in `append`
    _used bigint[];
    _place int;
    _size bigint;
    _messages bigint;
    _bytes bigint;
BEGIN
    PERFORM S.lock('inboxes');
    _used := ARRAY[S.bytes_of('inboxes', '')];
    FOR _i IN 1 .. coalesce(array_length(_inboxes, 1), 0) LOOP
        o_duplicate := false;
        o_refusal := NULL;
        IF _keys[_i] IS NOT NULL THEN
            SELECT number INTO o_seq FROM S.inbox_keys WHERE inbox = _inboxes[_i] AND key = _keys[_i];
            IF FOUND THEN
                o_duplicate := true;
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        o_seq := 0;
        _size := octet_length(_payloads[_i]);
        _place := array_position(_names, _senders[_i]);
        IF _place IS NULL THEN
            _place := array_length(_names, 1) + 1;
            _names[_place] := _senders[_i];
            _used[_place] := S.bytes_of('inboxes', _senders[_i]);
        END IF;
        o_refusal := S.refusal(_size, _total - _used[1], CASE WHEN _place > 1 THEN _used[_place] END);
        SELECT * INTO _inbox FROM S.inboxes WHERE name = _inboxes[_i];
        _messages := coalesce(_inbox.messages, 0);
        _bytes := coalesce(_inbox.bytes, 0);
        IF o_refusal IS NULL AND (_messages >= _most_messages OR _bytes + _size > _most_bytes) THEN
            SELECT count(*), coalesce(sum(octet_length(payload)), 0) INTO _messages, _bytes FROM S.inbox_messages
                WHERE inbox = _inboxes[_i] AND (expires_at IS NULL OR expires_at > _ats[_i]);
            IF _messages >= _most_messages OR _bytes + _size > _most_bytes THEN
                o_refusal := 'inbox';
            END IF;
        END IF;
        IF o_refusal IS NOT NULL THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        INSERT INTO S.inboxes SELECT _inboxes[_i], last + 1, _ats[_i], 1, _size FROM S.forgotten
            ON CONFLICT (name) DO UPDATE SET last = inboxes.last + 1, at = greatest(inboxes.at, excluded.at),
                messages = inboxes.messages + 1, bytes = inboxes.bytes + excluded.bytes
            RETURNING last INTO o_seq;
        INSERT INTO S.inbox_messages VALUES (_inboxes[_i], o_seq, _payloads[_i], _ats[_i], _expires[_i], _senders[_i]);
        _used[1] := _used[1] + _size;
        IF _place > 1 THEN
            _used[_place] := _used[_place] + _size;
        END IF;
        IF _keys[_i] IS NOT NULL THEN
            INSERT INTO S.inbox_keys VALUES (_inboxes[_i], _keys[_i], o_seq, _ats[_i]);
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM S.set_bytes('inboxes', _names, _used);
END $$;

CREATE FUNCTION S.acknowledge(_name bytea, _upto bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    _gone record;
BEGIN
    PERFORM S.lock('inboxes');
    FOR _gone IN
        DELETE FROM S.inbox_messages WHERE inbox = _name AND number <= _upto RETURNING sender, octet_length(payload) AS size
    LOOP
        PERFORM S.forget_inbox_message(_name, _gone.sender, _gone.size);
    END LOOP;
END $$;

CREATE FUNCTION S.forget_inbox_message(_name bytea, _sender bytea, _size bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE S.inboxes SET messages = messages - 1, bytes = bytes - _size WHERE name = _name;
    PERFORM S.add_bytes('inboxes', '', -_size);
    IF _sender <> '' THEN
        PERFORM S.add_bytes('inboxes', _sender, -_size);
    END IF;
END $$;

CREATE FUNCTION S.forget_message(_sender bytea, _size bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM S.add_bytes('rooms', '', -_size);
    IF _sender <> '' THEN
        PERFORM S.add_bytes('rooms', _sender, -_size);
    END IF;
END $$;

CREATE FUNCTION S.sweep_messages(_now float8, _limit bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _gone record;
    _count bigint := 0;
BEGIN
    PERFORM S.lock('rooms');
    FOR _gone IN
        DELETE FROM S.messages WHERE (room, number) IN
            (SELECT room, number FROM S.messages WHERE expires_at <= _now ORDER BY expires_at LIMIT _limit)
            RETURNING sender, octet_length(payload) AS size
    LOOP
        PERFORM S.forget_message(_gone.sender, _gone.size);
        _count := _count + 1;
    END LOOP;
    RETURN _count;
END $$;

CREATE FUNCTION S.sweep_room(_name bytea, _now float8, _position_time float8, _limit bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _room S.rooms;
    _first bigint;
    _upto bigint;
    _gone record;
    _count bigint := 0;
BEGIN
    PERFORM S.lock('rooms');
    SELECT * INTO _room FROM S.rooms WHERE name = _name;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    _first := S.first_kept(_room, _now);
    FOR _gone IN
        DELETE FROM S.messages WHERE room = _name AND number IN
            (SELECT number FROM S.messages WHERE room = _name AND number >= _room.first AND number < _first
                ORDER BY number LIMIT _limit)
            RETURNING number, sender, octet_length(payload) AS size
    LOOP
        PERFORM S.forget_message(_gone.sender, _gone.size);
        _count := _count + 1;
        _upto := greatest(_upto, _gone.number + 1);
    END LOOP;
    IF _count = _limit THEN  -- there may be more of them
        _first := _upto;
    END IF;
    UPDATE S.rooms SET first = _first WHERE name = _name AND first <> _first;
    IF _first > _room.last AND _count < _limit AND _room.at < _now - _room.age - _position_time THEN
        DELETE FROM S.rooms WHERE name = _name;
    END IF;
    RETURN _count;
END $$;

CREATE FUNCTION S.sweep_inboxes(_now float8, _before float8, _empty_before float8, _limit bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _gone record;
    _count bigint := 0;
BEGIN
    PERFORM S.lock('inboxes');
    FOR _gone IN
        DELETE FROM S.inbox_messages WHERE (inbox, number) IN (
            (SELECT inbox, number FROM S.inbox_messages WHERE expires_at <= _now ORDER BY expires_at LIMIT _limit)
            UNION (SELECT inbox, number FROM S.inbox_messages WHERE at < _before ORDER BY at LIMIT _limit)
        ) RETURNING inbox, sender, octet_length(payload) AS size
    LOOP
        PERFORM S.forget_inbox_message(_gone.inbox, _gone.sender, _gone.size);
        _count := _count + 1;
    END LOOP;
    FOR _gone IN
        DELETE FROM S.inboxes WHERE name IN
            (SELECT name FROM S.inboxes WHERE messages = 0 AND at < _empty_before LIMIT _limit) RETURNING last
    LOOP
        UPDATE S.forgotten SET last = greatest(last, _gone.last);
        _count := _count + 1;
    END LOOP;
    RETURN _count;
END $$;

CREATE FUNCTION S.sweep_rest(_now float8, _keys_before float8) RETURNS void LANGUAGE sql AS $$
    DELETE FROM S.room_keys WHERE at < _keys_before;
    DELETE FROM S.inbox_keys WHERE at < _keys_before;
    DELETE FROM S.sessions WHERE expires_at <= _now;
    DELETE FROM S.usage WHERE bytes = 0 AND sender <> '';
$$;
"""

SCHEMA: Final = _TABLES + _FUNCTIONS
"""For `postgres.client.create_schema`."""
