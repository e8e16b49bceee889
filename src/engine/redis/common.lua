-- What a script needs that looks at more than the usual.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function fingerprint(tag, own)
  return text(tag * 4294967296 + own)
end

-- A media type without its parameters.
local function essence(media_type)
  return string.lower(string.match(media_type, '^%s*([^;%s]*)'))
end

local function is_json(media_type)
  return essence(media_type) == 'application/json'
end

local function forks_of(meta)
  return (string.gsub(meta, ':channel$', ':forks'))
end

local function log_of(meta)
  return (string.gsub(meta, ':channel$', ':log'))
end

local function was_of(meta)
  return (string.gsub(meta, ':channel$', ':was'))
end

-- How long an offset of a channel that nobody has made is good for: no longer than a channel of that name would have been
-- remembered. Whoever is away for longer may have missed one.
local SPAN = AGE > 0 and AGE + LINGER or 604800000

-- The fingerprint of an absent tail: what the last channel of that name has left, or else a count of half spans, of which the
-- one before is good too. What was left is good for a span since it was last handed out, as a count is: a client that comes back
-- again and again is never refused.
local function origin(meta)
  local was = redis.call('GET', was_of(meta))
  if not was then return text(AGE > 0 and math.floor(now / SPAN * 2) or 0) end
  redis.call('PEXPIRE', was_of(meta), text(SPAN))
  return was
end

local function is_origin(low, of)
  local this, that = tonumber(low), tonumber(of)
  return low == of or (this < 4294967296 and that < 4294967296 and math.abs(this - that) <= 1)
end

-- Remembers that there was a channel: for so long after it may be gone.
local function remember(it, lives)
  redis.call('SET', was_of(it.meta), fingerprint(it.tag, 0), 'PX', text(lives + SPAN))
end

-- What seldom changes: tag, the absent tail before it existed, how it came to exist (0 by an append, 1 by a creation, 2 by a
-- broadcast, which makes it transient), idle milliseconds, end, closed, buried.
local IS = '^(%d+) (%d+) (%d) (%S+) (%S+) (%d) (%d)$'

local function pack_at(it)
  local plain = not (it.closed or it.buried or it.ttl or it.till or it.transient)
  return struct.pack(AT, plain and (is_json(it.type) and 'j' or 'b') or '-', it.tag, it.tail, it.floor, tonumber(it.low),
    tonumber(it.floorlow), it.sum, it.floorsum, it.first, it.kept)
end

local function save(it)
  redis.call('HSET', it.meta, 'at', pack_at(it))
end

local function save_all(it)
  local is = table.concat({ text(it.tag), it.born, it.transient and '2' or it.made and '1' or '0', it.ttl and text(it.ttl) or '-',
    it.till and text(it.till) or '-', it.closed and '1' or '0', it.buried and '1' or '0' }, ' ')
  redis.call('HSET', it.meta, 'is', is, 'at', pack_at(it))
end

-- Whether a channel that was deleted is needed for its name: a fork of it is still there, or a fork of that.
local function has_forks(meta, tag)
  for _, fork in ipairs(redis.call('SMEMBERS', forks_of(meta))) do
    local v = redis.call('HMGET', fork, 'of', 'is')
    if v[1] == meta .. ' ' .. tag and v[2] then
      local own, _, _, _, _, _, buried = string.match(v[2], IS)
      if buried == '0' or has_forks(fork, own) then return true end
    end
    redis.call('SREM', forks_of(meta), fork)
  end
  return false
end

-- Takes a channel away, and with it those it was forked from, if they were deleted and it was their last fork.
local function remove(meta)
  while true do
    local of = redis.call('HGET', meta, 'of')
    redis.call('UNLINK', meta, log_of(meta), forks_of(meta))
    if not of then return end
    meta = string.match(of, '^(.*) ')
    local is = redis.call('HGET', meta, 'is')
    if not is then return end
    local tag, _, _, _, _, _, buried = string.match(is, IS)
    if buried == '0' or has_forks(meta, tag) then return end
  end
end

-- What is known of a channel, or nil.
local function load(meta)
  local v = redis.call('HMGET', meta, 'type', 'is', 'at')
  if not v[1] then return nil end
  local it = { meta = meta, log = log_of(meta), type = v[1] }
  local tag, born, made, ttl, till, closed, buried = string.match(v[2], IS)
  it.tag, it.born, it.made, it.closed, it.buried = tonumber(tag), born, made == '1', closed == '1', buried == '1'
  it.transient, it.ttl, it.till = made == '2', tonumber(ttl), tonumber(till)
  if it.buried and not has_forks(meta, tag) then
    remove(meta)
    return nil
  end
  local _, _, tail, floor, low, floorlow, sum, floorsum, first, kept = struct.unpack(AT, v[3])
  it.tail, it.low, it.floor, it.floorlow = tail, text(low), floor, text(floorlow)
  it.sum, it.floorsum, it.first, it.kept = sum, floorsum, first, kept
  if tail > floor and redis.call('EXISTS', it.log) == 0 then
    -- All of it has aged out, or was evicted: where it ended is still known.
    it.floor, it.floorlow, it.floorsum = it.tail, it.low, it.sum
  end
  return it
end

-- A channel that was not there. A log without a channel is what an eviction left.
local function make(meta, media_type, tag, own, made, transient)
  local low, born = fingerprint(tag, own), origin(meta)
  local it = {
    meta = meta, log = log_of(meta),
    type = media_type, tag = tag, tail = 0, low = low, floor = 0, floorlow = low, sum = 0, floorsum = 0,
    closed = false, made = made, transient = transient, born = born, first = now, kept = 0,
  }
  -- What needs memory comes first: once a script has written, it is not refused any more.
  redis.call('HSET', meta, 'type', media_type)
  save_all(it)
  redis.call('UNLINK', it.log, forks_of(meta), was_of(meta))
  return it
end

local function is_deleted(it)
  return { 'deleted', text(it.tail), it.low }
end

-- The fields of an entry, which come as a flat list.
local function field(entry, name)
  local fields = entry[2]
  for at = 1, #fields, 2 do
    if fields[at] == name then return fields[at + 1] end
  end
end

-- The position in an id, as a number, and the fingerprint, as it is.
local function split(id)
  local dash = string.find(id, '-')
  return tonumber(string.sub(id, 1, dash - 1)), string.sub(id, dash + 1)
end

-- More than is kept, but for the newest append, which is kept whatever its size.
local function has_surplus(it)
  local n = it.tail - it.floor
  return n > 1 and (n > APPENDS or it.sum - it.floorsum > BYTES)
end

-- Lets go of what retention does not keep: more than so many appends or bytes, or older than so long. Says whether something
-- was let go.
local function trim(it)
  local trimmed = false
  -- Mostly there is nothing to let go, and entries are dear to look at.
  while it.tail > it.floor and (has_surplus(it) or it.first + OLD < now) do
    local gone = 0
    for _, entry in ipairs(redis.call('XRANGE', it.log, '-', '+', 'COUNT', 17)) do
      local _, made, sum = struct.unpack(ONE, field(entry, 'm'))
      it.first = made
      if gone == 16 or not (has_surplus(it) or made + OLD < now) then break end
      gone = gone + 1
      it.floor, it.floorlow = split(entry[1])
      it.floorsum = sum
    end
    trimmed = true
    -- Never a stream without entries: its last id would outlive what it counts.
    if it.tail == it.floor then
      redis.call('UNLINK', it.log)
    elseif gone > 0 then
      redis.call('XTRIM', it.log, 'MAXLEN', it.tail - it.floor)
    end
    if gone < 16 then break end
  end
  return trimmed
end

-- How long the keys live from now on. `written`: something was appended just now. Where that is an age, it is set for an eighth
-- longer, and then not again for so long.
local function keep(it, written)
  local idle = it.ttl or it.transient and LINGER
  if idle then
    redis.call('PEXPIRE', it.meta, idle)
    redis.call('PEXPIRE', it.log, idle)
    remember(it, idle)
  elseif it.till then
    redis.call('PEXPIREAT', it.meta, it.till)
    redis.call('PEXPIREAT', it.log, it.till)
    if written then remember(it, math.max(it.till - now, 0)) end
  elseif AGE > 0 then
    if written and it.kept + SPARE <= now then
      it.kept = now
      save(it)
      redis.call('PEXPIRE', it.log, text(AGE + SPARE + 1))
      if not it.made then redis.call('PEXPIRE', it.meta, text(AGE + SPARE + LINGER)) end
    elseif not written and not it.made and redis.call('PTTL', it.meta) < LINGER then
      redis.call('PEXPIRE', it.meta, LINGER)
    end
  end
end

-- Turns a transient channel into an ordinary one. The caller sets its expiry by `keep`.
local function settle(it, made)
  it.transient, it.made, it.kept = false, made, 0
  save_all(it)
  redis.call('PERSIST', it.meta)
  redis.call('PERSIST', it.log)
end

-- Adds an append, and says so to whoever has subscribed.
local function add(it, topic, data, messages, own, closes)
  local before = it.low
  -- A stream that is made now has no expiry yet.
  if it.tail == it.floor then it.first, it.kept = now, 0 end
  it.tail, it.low, it.sum = it.tail + 1, fingerprint(it.tag, own), it.sum + #data
  redis.call('XADD', it.log, text(it.tail) .. '-' .. it.low, 'd', data, 'm', struct.pack(ONE, messages, now, it.sum))
  local whole = #data <= INLINE
  local head = struct.pack(HEARD, it.tail, tonumber(it.low), tonumber(before), messages, (closes and 1 or 0) + (whole and 2 or 0))
  redis.call('PUBLISH', topic, '+' .. head .. (whole and data or ''))
end

-- Where a place is in a log: the position and fingerprint just before it, or why it is none.
local function locate(it, where, position, low)
  if where == 'tail' then return it.tail, it.low end
  if where == 'origin' and it.floor > 0 then return nil, 'trimmed' end
  if where ~= 'after' then return it.floor, it.floorlow end
  local at = tonumber(position)
  local anything = at == 0 and is_origin(low, it.born)
  local ours = math.floor(tonumber(low) / 4294967296) == it.tag or anything
  -- The floor itself, or before anything while nothing has been let go.
  if (at == it.floor and low == it.floorlow) or (anything and it.floor == 0) then return it.floor, it.floorlow end
  if at > it.tail then return nil, ours and 'ahead' or 'other-log' end
  if at <= it.floor then return nil, ours and 'trimmed' or 'other-log' end
  local id = position .. '-' .. low
  if #redis.call('XRANGE', it.log, id, id, 'COUNT', 1) == 1 then return at, low end
  return nil, 'other-log'
end
