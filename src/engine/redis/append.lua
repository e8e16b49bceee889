-- Appends, closes, or both. ARGV: topic, type to create with, type that was said, kind of content (j, b or none), messages,
-- data, close, Stream-Seq, producer's id, epoch and number, tag and own part of a fingerprint, then what is kept: appends,
-- bytes, age, linger, producers, bytes that a publication carries.
local topic, create, said, kind, messages, data = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local closes, seq, id, epoch, number = ARGV[7] == '1', ARGV[8], ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
local tag, own = tonumber(ARGV[12]), tonumber(ARGV[13])
local appends, bytes, age, linger = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])
local producers, inline = tonumber(ARGV[18]), tonumber(ARGV[19])

local meta = KEYS[1]
local it = load(meta)
if it and it.buried then return is_deleted(it) end
local fresh = not it
if fresh then
  if create == '' then return { 'unknown' } end
  it = { type = create, closed = false }
end

local known = id ~= '' and not fresh and redis.call('HGET', meta, 'p:' .. id)
local last_epoch, last_number
if known then
  local a, b = string.match(known, '^(%d+) (%d+)')
  last_epoch, last_number = tonumber(a), tonumber(b)
end

-- What a producer's message is: to be accepted, one that was before, or refused.
local function admit()
  if id == '' then return 'accept' end
  if not known then
    if number == 0 then return 'accept' end
    return 'gap', { 'gap', '0', text(number) }
  end
  if epoch < last_epoch then return 'fenced', { 'fenced', text(last_epoch) } end
  if epoch > last_epoch then
    if number == 0 then return 'accept' end
    return 'epoch', { 'epoch' }
  end
  if number <= last_number then return 'duplicate' end
  if number == last_number + 1 then return 'accept' end
  return 'gap', { 'gap', text(last_number + 1), text(number) }
end

-- Byte by byte, whatever the server's locale.
local function is_after(a, b)
  for at = 1, math.min(#a, #b) do
    local x, y = string.byte(a, at), string.byte(b, at)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local function done(closed, duplicate, e, n)
  return { 'done', text(it.tail), it.low, closed and '1' or '0', duplicate and '1' or '0', e or '', n or '' }
end

if it.closed then
  if id == '' then
    if closes and kind == '' then return done(true, true) end
  else
    if redis.call('HGET', meta, 'by') == table.concat({ text(epoch), text(number), id }, ' ') then
      return done(true, true, text(epoch), text(number))
    end
    local verdict, refusal = admit()
    if verdict == 'fenced' then return refusal end
  end
  return { 'closed' }
end

if kind ~= '' then
  local json = essence(it.type) == 'application/json'
  if (said ~= '' and essence(said) ~= essence(it.type)) or json ~= (kind == 'j') then return { 'type', it.type } end
end

local verdict, refusal = admit()
if verdict == 'duplicate' then return done(false, true, text(last_epoch), text(last_number)) end
if refusal then return refusal end

if seq ~= '' and not fresh then
  local last = redis.call('HGET', meta, 'seq')
  if last and not is_after(seq, last) then return { 'sequence' } end
end

if fresh then
  it = make(meta, create, tag, own, false, age, linger)
  redis.call('PUBLISH', topic, 'made')
end
if kind ~= '' then
  add(it, topic, data, messages, own, closes, inline)
  -- Whoever reads does it first, so that nobody sees what is a few appends too many: together they cost less.
  if it.tail % 16 == 0 or (bytes > 0 and it.bytes > 2 * bytes) then trim(it, appends, bytes, age) end
  save(it)
end
if seq ~= '' then redis.call('HSET', meta, 'seq', seq) end
if id ~= '' then
  local heard = redis.call('HINCRBY', meta, 'heard', 1)
  if not known and redis.call('HINCRBY', meta, 'producers', 1) > producers then
    -- One too many: the one that was silent the longest is forgotten.
    local silent, since
    local all = redis.call('HGETALL', meta)
    for at = 1, #all, 2 do
      if string.sub(all[at], 1, 2) == 'p:' then
        local when = tonumber(string.match(all[at + 1], '(%d+)$'))
        if not since or when < since then silent, since = all[at], when end
      end
    end
    if silent then
      redis.call('HDEL', meta, silent)
      redis.call('HINCRBY', meta, 'producers', -1)
    end
  end
  redis.call('HSET', meta, 'p:' .. id, table.concat({ text(epoch), text(number), text(heard) }, ' '))
end
if closes then
  it.closed = true
  save_is(it)
  if id ~= '' then redis.call('HSET', meta, 'by', table.concat({ text(epoch), text(number), id }, ' ')) end
  if kind == '' then redis.call('PUBLISH', topic, table.concat({ 'closed', text(it.tail), it.low }, ' ')) end
end
keep(it, age, linger, true)
return done(closes, false, id ~= '' and text(epoch) or nil, id ~= '' and text(number) or nil)
