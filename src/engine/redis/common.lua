-- What all scripts begin with. A channel is two keys: `…:channel`, a hash that says what it is, and `…:log`, a stream of its
-- appends, whose ids are `<position>-<fingerprint>`. An offset is such an id, so it proves by itself which append it is.
-- One that was forked has a third, `…:forks`, a set of the forks.
--
-- The hash has `type`, and in one field each what seldom changes, `is`, and what every append changes, `at`: a field costs as much as
-- a number of numbers in it. Beside them are the last `Stream-Seq`, the producers, and where a fork comes from.
--
-- A fingerprint is below 2^53, so that Lua can count with it: 21 bits that all appends of a log share, and 32 of its own.
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
local function span(age, linger)
  return age > 0 and age + linger or 604800000
end

-- What stands for the fingerprint of the tail of a channel that nobody has made: what a deleted one of that name has left, or
-- else a count of half spans, of which the one before is good too.
local function origin(meta, age, linger)
  return redis.call('GET', was_of(meta)) or text(age > 0 and math.floor(now / span(age, linger) * 2) or 0)
end

local function is_origin(low, of)
  local this, that = tonumber(low), tonumber(of)
  return low == of or (this < 4294967296 and that < 4294967296 and math.abs(this - that) <= 1)
end

-- Remembers that there was a channel: for so long after it may be gone.
local function remember(it, age, linger, lives)
  redis.call('SET', was_of(it.meta), fingerprint(it.tag, 0), 'PX', text(lives + span(age, linger)))
end

-- What seldom changes: tag, what stood for the tail before, whether it was created, idle milliseconds, end, closed, buried.
local IS = '^(%d+) (%d+) (%d) (%S+) (%S+) (%d) (%d)$'

-- What every append changes: where it ends and where it begins, how many appends and bytes that is, when the first of them was
-- made, and when the expiry of the keys was last set.
local AT = '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$'

local function save_is(it)
  redis.call('HSET', it.meta, 'is', table.concat({ text(it.tag), it.born, it.made and '1' or '0', it.ttl and text(it.ttl) or '-',
    it.till and text(it.till) or '-', it.closed and '1' or '0', it.buried and '1' or '0' }, ' '))
end

local function save(it)
  redis.call('HSET', it.meta, 'at', table.concat({ text(it.tail), it.low, text(it.floor), it.floorlow, text(it.n), text(it.bytes),
    text(it.first), text(it.kept) }, ' '))
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
  it.ttl, it.till = tonumber(ttl), tonumber(till)
  if it.buried and not has_forks(meta, tag) then
    remove(meta)
    return nil
  end
  local tail, low, floor, floorlow, n, bytes, first, kept = string.match(v[3], AT)
  it.tail, it.low, it.floor, it.floorlow = tonumber(tail), low, tonumber(floor), floorlow
  it.n, it.bytes, it.first, it.kept = tonumber(n), tonumber(bytes), tonumber(first), tonumber(kept)
  if it.n > 0 and redis.call('EXISTS', it.log) == 0 then
    -- All of it has aged out, or was evicted: where it ended is still known.
    it.n, it.bytes, it.floor, it.floorlow = 0, 0, it.tail, it.low
  end
  return it
end

-- A channel that was not there. A log without a channel is what an eviction left.
local function make(meta, media_type, tag, own, made, age, linger)
  local low, born = fingerprint(tag, own), origin(meta, age, linger)
  local it = {
    meta = meta, log = log_of(meta),
    type = media_type, tag = tag, tail = 0, low = low, floor = 0, floorlow = low,
    n = 0, bytes = 0, closed = false, made = made, born = born, first = now, kept = 0,
  }
  -- What needs memory comes first: once a script has written, it is not refused any more.
  redis.call('HSET', meta, 'type', media_type)
  save_is(it)
  save(it)
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

-- Lets go of what retention does not keep: more than so many appends or bytes, or older than so long. The newest append is
-- kept whatever its size. Says whether something was let go.
local function trim(it, appends, bytes, age)
  local trimmed = false
  while it.n > 0 do
    -- Mostly there is nothing to let go, and entries are dear to look at.
    local many = it.n > 1 and ((appends > 0 and it.n > appends) or (bytes > 0 and it.bytes > bytes))
    if not many and not (age > 0 and it.first + age < now) then break end
    local entries = redis.call('XRANGE', it.log, '-', '+', 'COUNT', 17)
    local gone = 0
    for _, entry in ipairs(entries) do
      local surplus = it.n > 1 and ((appends > 0 and it.n > appends) or (bytes > 0 and it.bytes > bytes))
      it.first = tonumber(field(entry, 't'))
      if gone == 16 or not (surplus or (age > 0 and it.first + age < now)) then break end
      gone = gone + 1
      it.n = it.n - 1
      it.bytes = it.bytes - #field(entry, 'd')
      local dash = string.find(entry[1], '-')
      it.floor, it.floorlow = tonumber(string.sub(entry[1], 1, dash - 1)), string.sub(entry[1], dash + 1)
    end
    trimmed = true
    -- Never a stream without entries: its last id would outlive what it counts.
    if it.n == 0 then redis.call('UNLINK', it.log) elseif gone > 0 then redis.call('XTRIM', it.log, 'MAXLEN', it.n) end
    if gone < 16 then break end
  end
  return trimmed
end

-- How long the keys live from now on. `written`: something was appended just now. Where that is an age, it is set for an eighth
-- longer, and then not again for so long.
local function keep(it, age, linger, written)
  if it.ttl then
    redis.call('PEXPIRE', it.meta, it.ttl)
    redis.call('PEXPIRE', it.log, it.ttl)
    remember(it, age, linger, it.ttl)
  elseif it.till then
    redis.call('PEXPIREAT', it.meta, it.till)
    redis.call('PEXPIREAT', it.log, it.till)
    if written then remember(it, age, linger, math.max(it.till - now, 0)) end
  elseif age > 0 then
    local spare = math.ceil(age / 8)
    if written and it.kept + spare <= now then
      it.kept = now
      save(it)
      redis.call('PEXPIRE', it.log, text(age + spare + 1))
      if not it.made then redis.call('PEXPIRE', it.meta, text(age + spare + linger)) end
    elseif not written and not it.made and redis.call('PTTL', it.meta) < linger then
      redis.call('PEXPIRE', it.meta, linger)
    end
  end
end

-- Adds an append, and says so to whoever has subscribed.
local function add(it, topic, data, messages, own, closes, inline)
  local before = it.low
  -- A stream that is made now has no expiry yet.
  if it.n == 0 then it.first, it.kept = now, 0 end
  it.tail, it.low = it.tail + 1, fingerprint(it.tag, own)
  it.n, it.bytes = it.n + 1, it.bytes + #data
  redis.call('XADD', it.log, text(it.tail) .. '-' .. it.low, 'd', data, 'm', messages, 't', text(now))
  local whole = #data <= inline
  local head = table.concat({ 'append', text(it.tail), it.low, before, messages, closes and '1' or '0', whole and '1' or '0' }, ' ')
  redis.call('PUBLISH', topic, head .. '\n' .. (whole and data or ''))
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
