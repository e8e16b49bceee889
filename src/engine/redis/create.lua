-- Creates, or finds created in the same way. ARGV: topic, type, idle milliseconds, end in milliseconds since 1970, closed, kind of
-- content (j, b or none), messages, data, tag and own part of a fingerprint, then what is kept: appends, bytes, age, linger, and
-- the bytes that a publication carries.
local topic, media_type, ttl, till, closed, kind, messages, data =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], ARGV[8]
local tag, own = tonumber(ARGV[9]), tonumber(ARGV[10])
local appends, bytes, age, linger, inline =
  tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])

local function created(it, fresh)
  return { 'created', text(it.tail), it.low, it.closed and '1' or '0', it.type, fresh and '1' or '0' }
end

local it = load()
if it then
  local same = essence(it.type) == essence(media_type) and (it.ttl or '') == (tonumber(ttl) or '')
    and (it.till or '') == (tonumber(till) or '') and it.closed == closed
  if not same then return { 'conflict' } end
  if not it.made then
    redis.call('HSET', meta, 'made', '1')
    if not it.ttl and not it.till then redis.call('PERSIST', meta) end
  end
  return created(it, false)
end

it = make(media_type, tag, own, true)
if ttl ~= '' then
  it.ttl = tonumber(ttl)
  redis.call('HSET', meta, 'ttl', ttl)
end
if till ~= '' then
  it.till = tonumber(till)
  redis.call('HSET', meta, 'until', till)
end
redis.call('PUBLISH', topic, 'made')
if kind ~= '' then
  add(it, topic, data, messages, own, closed, inline)
  save(it)
end
if closed then
  it.closed = true
  redis.call('HSET', meta, 'closed', '1')
  if kind == '' then redis.call('PUBLISH', topic, table.concat({ 'closed', text(it.tail), it.low }, ' ')) end
end
keep(it, age, linger, kind ~= '')
return created(it, true)
