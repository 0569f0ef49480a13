"""What the database does with inbox messages. `S.` stands for the schema (`schema`)."""

from typing import Final

__all__ = ["INBOX_FUNCTIONS"]

INBOX_FUNCTIONS: Final = """
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
"""
