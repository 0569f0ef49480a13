"""What Redis executes for the store: scripts, each of which is one step that nothing can interrupt.

Keys, behind the prefix (names are hex, so that none can pretend to be another key):

    room:NAME        hash     e epoch, first, last, size, age, at (the greatest of its messages)
    log:NAME         stream   OFFSET-0: p payload, a at, x expires, s sender
    keys:NAME        hash     idempotency key: offset
    inbox:USER       hash     last, at, n messages, b bytes
    mail:USER        stream   SEQ-0: p, a, x, s
    mailkeys:USER    hash     idempotency key: seq
    session:ID       hash     p payload, x expires
    groups           set      group and user
    room_bytes, inbox_bytes            hashes: bytes by sender; of all, in the field `all`
    rooms, inboxes                     sorted sets: names, by `at`
    expiring, mail_expiring, mail_age  sorted sets: NAME:NUMBER, by the time
    idempotency, sessions              sorted sets, by the time
    fence            string   written after reads, to wait for replicas (`store._read_committed`)
    forgotten        string   the greatest `last` of the inboxes that were forgotten
    version          string   of all this
    run, generation  strings  the run of Redis that was last written to; how often one began that may have lost something

After such a loss, epochs and the numbers of inboxes are others: `told_epoch`, `least`.
"""

from typing import Final

__all__ = ["SCRIPTS"]

_COMMON: Final = """
local function fields(entry)
  local found = {}
  for i = 1, #entry[2], 2 do found[entry[2][i]] = entry[2][i + 1] end
  return found
end
local function told_epoch(epoch, generation)
  -- Positions of a generation that may have had more messages are those of another epoch.
  return generation and epoch .. '.' .. generation or epoch
end
local function number_of(entry) return tonumber(string.match(entry[1], '^%d+')) end
local function add_bytes(key, sender, size)
  redis.call('HINCRBY', key, 'all', size)
  if sender ~= '' then
    if redis.call('HINCRBY', key, 's' .. sender, size) == 0 then redis.call('HDEL', key, 's' .. sender) end
  end
end
local function refusal(key, sender, size, total)
  local all = tonumber(redis.call('HGET', key, 'all') or '0')
  local free = total - all
  if size > free then return 'total' end
  if sender ~= '' and tonumber(redis.call('HGET', key, 's' .. sender) or '0') + size > free then return 'sender' end
  return nil
end
local function below(stream, first, bytes)
  -- Remove the entries of a stream with a number below `first`, and count them out.
  if redis.call('XLEN', stream) == 0 then return end
  while true do
    local old = redis.call('XRANGE', stream, '-', string.format('(%d-0', first), 'COUNT', 100)
    if #old == 0 then return end
    for _, entry in ipairs(old) do
      local value = fields(entry)
      add_bytes(bytes, value['s'], -#value['p'])
      redis.call('XDEL', stream, entry[1])
    end
  end
end
local function first_kept(room, log, now)
  -- The oldest offset within the retention: after the last of those that are too old in a row.
  local meta = redis.call('HMGET', room, 'first', 'last', 'age', 'at')
  local first, last = tonumber(meta[1]), tonumber(meta[2])
  if meta[3] == '' then return first, last, nil end
  local oldest = now - tonumber(meta[3])
  if first > last then return first, last, oldest end
  if tonumber(meta[4]) < oldest then return last + 1, last, oldest end
  local from = first
  while true do
    local some = redis.call('XRANGE', log, string.format('%d-0', from), '+', 'COUNT', 50)
    if #some == 0 then return first, last, oldest end
    for _, entry in ipairs(some) do
      if tonumber(fields(entry)['a']) >= oldest then return first, last, oldest end
      first = number_of(entry) + 1
    end
    from = first
  end
end
"""

APPEND: Final = """
-- KEYS: room, log, keys, room_bytes, rooms, expiring, idempotency, generation
-- ARGV: name, payload, at, expires, sender, size, age, total, new epoch, has key, key
local room, log = KEYS[1], KEYS[2]
local epoch = redis.call('HGET', room, 'e')
local told = told_epoch(epoch or ARGV[9], redis.call('GET', KEYS[8]))
if ARGV[10] == '1' then
  local known = redis.call('HGET', KEYS[3], ARGV[11])
  if known then return {told, tonumber(known), 1, ''} end
end
local refused = refusal(KEYS[4], ARGV[5], #ARGV[2], tonumber(ARGV[8]))
if refused then return {told, 0, 0, refused} end
if not epoch then
  epoch = ARGV[9]
  redis.call('DEL', log)
  redis.call('HSET', room, 'e', epoch, 'first', 1, 'last', 0, 'at', ARGV[3])
end
local offset = redis.call('HINCRBY', room, 'last', 1)
redis.call('XADD', log, string.format('%d-0', offset), 'p', ARGV[2], 'a', ARGV[3], 'x', ARGV[4], 's', ARGV[5])
add_bytes(KEYS[4], ARGV[5], #ARGV[2])
local meta = redis.call('HMGET', room, 'first', 'at')
local at = ARGV[3]
if tonumber(meta[2]) > tonumber(at) then at = meta[2] end
local first = math.max(tonumber(meta[1]), offset - tonumber(ARGV[6]) + 1)
redis.call('HSET', room, 'first', first, 'size', ARGV[6], 'age', ARGV[7], 'at', at)
redis.call('ZADD', KEYS[5], at, ARGV[1])
if ARGV[4] ~= '' then redis.call('ZADD', KEYS[6], ARGV[4], ARGV[1] .. ':' .. offset) end
below(log, first, KEYS[4])
if ARGV[10] == '1' then
  redis.call('HSET', KEYS[3], ARGV[11], offset)
  redis.call('ZADD', KEYS[7], ARGV[3], 'r:' .. ARGV[1] .. ':' .. ARGV[11])
end
return {told, offset, 0, ''}
"""

READ: Final = """
-- KEYS: room, log, generation. ARGV: after (empty: the newest), limit, max bytes, now
local epoch = redis.call('HGET', KEYS[1], 'e')
if not epoch then return {'', 1, 0, {}} end
local now, left, bytes = tonumber(ARGV[4]), tonumber(ARGV[2]), tonumber(ARGV[3])
local first, last, oldest = first_kept(KEYS[1], KEYS[2], now)
local newest, found = ARGV[1] == '', {}
local from = newest and last or math.max(first, tonumber(ARGV[1] == '' and '0' or ARGV[1]) + 1)
while left > 0 and from >= first and from <= last do
  local some
  if newest then
    some = redis.call('XREVRANGE', KEYS[2], string.format('%d-0', from), string.format('%d-0', first), 'COUNT', 100)
  else
    some = redis.call('XRANGE', KEYS[2], string.format('%d-0', from), '+', 'COUNT', 100)
  end
  if #some == 0 then break end
  for _, entry in ipairs(some) do
    local value, offset = fields(entry), number_of(entry)
    from = newest and offset - 1 or offset + 1
    local expired = value['x'] ~= '' and tonumber(value['x']) <= now
    if not expired and not (oldest and tonumber(value['a']) < oldest) then
      bytes = bytes - #value['p']
      if bytes < 0 and #found > 0 then left = 0 break end
      found[#found + 1] = {offset, value['p'], value['a'], value['x']}
      left = left - 1
      if left == 0 then break end
    end
  end
end
return {told_epoch(epoch, redis.call('GET', KEYS[3])), first, last, found}
"""

POST: Final = """
-- KEYS: inbox, mail, mailkeys, inbox_bytes, inboxes, mail_expiring, mail_age, idempotency, forgotten, generation
-- ARGV: user, payload, at, expires, sender, messages, bytes, total, has key, key
local inbox, mail, now = KEYS[1], KEYS[2], tonumber(ARGV[3])
if ARGV[9] == '1' then
  local known = redis.call('HGET', KEYS[3], ARGV[10])
  if known then return {tonumber(known), 1, ''} end
end
local size = #ARGV[2]
local refused = refusal(KEYS[4], ARGV[5], size, tonumber(ARGV[8]))
if refused then return {0, 0, refused} end
local count, bytes = 0, 0
local meta = redis.call('HMGET', inbox, 'n', 'b')
if tonumber(meta[1] or '0') < tonumber(ARGV[6]) and tonumber(meta[2] or '0') + size <= tonumber(ARGV[7]) then
  count = -1
else
  for _, entry in ipairs(redis.call('XRANGE', mail, '-', '+')) do
    local value = fields(entry)
    if value['x'] == '' or tonumber(value['x']) > now then
      count, bytes = count + 1, bytes + #value['p']
    end
  end
end
if count >= tonumber(ARGV[6]) or (count >= 0 and bytes + size > tonumber(ARGV[7])) then return {0, 0, 'inbox'} end
if tonumber(ARGV[6]) == 0 or size > tonumber(ARGV[7]) then return {0, 0, 'inbox'} end
if redis.call('EXISTS', inbox) == 0 then
  redis.call('DEL', mail)
  redis.call('HSET', inbox, 'last', redis.call('GET', KEYS[9]) or '0', 'at', ARGV[3], 'n', 0, 'b', 0)
end
local least = tonumber(redis.call('GET', KEYS[10]) or '0') * 4294967296  -- above what was given in earlier generations
if tonumber(redis.call('HGET', inbox, 'last')) < least then redis.call('HSET', inbox, 'last', string.format('%d', least)) end
local seq = redis.call('HINCRBY', inbox, 'last', 1)
redis.call('XADD', mail, string.format('%d-0', seq), 'p', ARGV[2], 'a', ARGV[3], 'x', ARGV[4], 's', ARGV[5])
redis.call('HINCRBY', inbox, 'n', 1)
redis.call('HINCRBY', inbox, 'b', size)
if tonumber(redis.call('HGET', inbox, 'at')) < now then redis.call('HSET', inbox, 'at', ARGV[3]) end
redis.call('ZADD', KEYS[5], redis.call('HGET', inbox, 'at'), ARGV[1])
add_bytes(KEYS[4], ARGV[5], size)
if ARGV[4] ~= '' then redis.call('ZADD', KEYS[6], ARGV[4], ARGV[1] .. ':' .. seq) end
redis.call('ZADD', KEYS[7], ARGV[3], ARGV[1] .. ':' .. seq)
if ARGV[9] == '1' then
  redis.call('HSET', KEYS[3], ARGV[10], seq)
  redis.call('ZADD', KEYS[8], ARGV[3], 'i:' .. ARGV[1] .. ':' .. ARGV[10])
end
return {seq, 0, ''}
"""

READ_INBOX: Final = """
-- KEYS: mail. ARGV: after, limit, max bytes, now
local now, left, bytes = tonumber(ARGV[4]), tonumber(ARGV[2]), tonumber(ARGV[3])
local from, found = tonumber(ARGV[1]) + 1, {}
while left > 0 do
  local some = redis.call('XRANGE', KEYS[1], string.format('%d-0', from), '+', 'COUNT', 100)
  if #some == 0 then break end
  for _, entry in ipairs(some) do
    local value, seq = fields(entry), number_of(entry)
    from = seq + 1
    if value['x'] == '' or tonumber(value['x']) > now then
      bytes = bytes - #value['p']
      if bytes < 0 and #found > 0 then left = 0 break end
      found[#found + 1] = {seq, value['p'], value['a'], value['x']}
      left = left - 1
      if left == 0 then break end
    end
  end
end
return found
"""

REMOVE_MAIL: Final = """
-- KEYS: inbox, mail, inbox_bytes, mail_expiring, mail_age. ARGV: user, first, last (numbers, both included)
local some = redis.call('XRANGE', KEYS[2], ARGV[2] .. '-0', ARGV[3] .. '-0')
for _, entry in ipairs(some) do
  local value, member = fields(entry), ARGV[1] .. ':' .. number_of(entry)
  add_bytes(KEYS[3], value['s'], -#value['p'])
  redis.call('HINCRBY', KEYS[1], 'n', -1)
  redis.call('HINCRBY', KEYS[1], 'b', -#value['p'])
  redis.call('XDEL', KEYS[2], entry[1])
  redis.call('ZREM', KEYS[4], member)
  redis.call('ZREM', KEYS[5], member)
end
return #some
"""

REMOVE_MESSAGE: Final = """
-- KEYS: log, room_bytes, expiring. ARGV: name, offset
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[2] .. '-0', ARGV[2] .. '-0')) do
  local value = fields(entry)
  add_bytes(KEYS[2], value['s'], -#value['p'])
  redis.call('XDEL', KEYS[1], entry[1])
end
redis.call('ZREM', KEYS[3], ARGV[1] .. ':' .. ARGV[2])
return 0
"""

SWEEP_ROOM: Final = """
-- KEYS: room, log, room_bytes, rooms, keys. ARGV: name, now, seconds that an empty room is remembered
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('ZREM', KEYS[4], ARGV[1]) return 0 end
local now = tonumber(ARGV[2])
local first, last, oldest = first_kept(KEYS[1], KEYS[2], now)
if first > tonumber(redis.call('HGET', KEYS[1], 'first')) then redis.call('HSET', KEYS[1], 'first', first) end
below(KEYS[2], first, KEYS[3])
if first > last and oldest and tonumber(redis.call('HGET', KEYS[1], 'at')) < oldest - tonumber(ARGV[3]) then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('ZREM', KEYS[4], ARGV[1])
end
return 0
"""

SWEEP_INBOX: Final = """
-- KEYS: inbox, mail, inboxes, forgotten. ARGV: user, the `at` before which an empty one is forgotten
if redis.call('XLEN', KEYS[2]) > 0 then return 0 end
local meta = redis.call('HMGET', KEYS[1], 'last', 'at')
if meta[1] and tonumber(meta[2]) >= tonumber(ARGV[2]) then return 0 end
if meta[1] and tonumber(meta[1]) > tonumber(redis.call('GET', KEYS[4]) or '0') then redis.call('SET', KEYS[4], meta[1]) end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
return 0
"""

TAKE_SESSION: Final = """
-- KEYS: session, sessions. ARGV: id
local found = redis.call('HMGET', KEYS[1], 'p', 'x')
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return found
"""

BEGIN: Final = """
-- KEYS: run, generation. ARGV: run, whether a run that follows another one has all that was acknowledged
local before = redis.call('GET', KEYS[1])
if before == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
if not before or ARGV[2] == '1' then return 0 end
return redis.call('INCR', KEYS[2])
"""

SCRIPTS: Final = {
    "begin": BEGIN,
    "append": _COMMON + APPEND,
    "read": _COMMON + READ,
    "post": _COMMON + POST,
    "read_inbox": _COMMON + READ_INBOX,
    "remove_mail": _COMMON + REMOVE_MAIL,
    "remove_message": _COMMON + REMOVE_MESSAGE,
    "sweep_room": _COMMON + SWEEP_ROOM,
    "sweep_inbox": _COMMON + SWEEP_INBOX,
    "take_session": TAKE_SESSION,
}
