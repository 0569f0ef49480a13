"""What the database does with the messages of rooms. `S.` stands for the schema (`schema`)."""

from typing import Final

__all__ = ["ROOM_FUNCTIONS"]

ROOM_FUNCTIONS: Final = """
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
"""
