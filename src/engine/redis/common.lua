-- What all scripts begin with. A channel is two keys: KEYS[1], a hash that says what it is, and KEYS[2], a stream of its
-- appends, whose ids are `<position>-<fingerprint>`. An offset is such an id, so it proves by itself which append it is.
--
-- A fingerprint is below 2^53, so that Lua can count with it: 21 bits that all appends of a log share, and 32 of its own.
local meta, log = KEYS[1], KEYS[2]

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

-- What is known of the channel, or nil.
local function load()
  local v = redis.call('HMGET', meta, 'type', 'tag', 'tail', 'low', 'floor', 'floorlow', 'n', 'bytes', 'closed', 'ttl', 'until', 'made')
  if not v[1] then return nil end
  local it = {
    type = v[1], tag = tonumber(v[2]), tail = tonumber(v[3]), low = v[4], floor = tonumber(v[5]), floorlow = v[6],
    n = tonumber(v[7]), bytes = tonumber(v[8]), closed = v[9] == '1',
    ttl = tonumber(v[10]), till = tonumber(v[11]), made = v[12] == '1',
  }
  if it.n > 0 and redis.call('EXISTS', log) == 0 then
    -- All of it has aged out, or was evicted: where it ended is still known.
    it.n, it.bytes, it.floor, it.floorlow = 0, 0, it.tail, it.low
  end
  return it
end

local function save(it)
  redis.call('HSET', meta, 'tail', text(it.tail), 'low', it.low, 'floor', text(it.floor), 'floorlow', it.floorlow,
    'n', text(it.n), 'bytes', text(it.bytes))
end

-- A channel that was not there. A log without a channel is what an eviction left.
local function make(media_type, tag, own, made)
  redis.call('UNLINK', log)
  local low = fingerprint(tag, own)
  redis.call('HSET', meta, 'type', media_type, 'tag', text(tag), 'tail', '0', 'low', low, 'floor', '0', 'floorlow', low,
    'n', '0', 'bytes', '0', 'closed', '0', 'made', made and '1' or '0')
  return {
    type = media_type, tag = tag, tail = 0, low = low, floor = 0, floorlow = low,
    n = 0, bytes = 0, closed = false, made = made,
  }
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
    local entries = redis.call('XRANGE', log, '-', '+', 'COUNT', 16)
    local gone = 0
    for _, entry in ipairs(entries) do
      local surplus = it.n > 1 and ((appends > 0 and it.n > appends) or (bytes > 0 and it.bytes > bytes))
      local old = age > 0 and tonumber(field(entry, 't')) + age < now
      if not (surplus or old) then break end
      gone = gone + 1
      it.n = it.n - 1
      it.bytes = it.bytes - #field(entry, 'd')
      local dash = string.find(entry[1], '-')
      it.floor, it.floorlow = tonumber(string.sub(entry[1], 1, dash - 1)), string.sub(entry[1], dash + 1)
    end
    if gone == 0 then break end
    trimmed = true
    -- Never a stream without entries: its last id would outlive what it counts.
    if it.n == 0 then redis.call('UNLINK', log) else redis.call('XTRIM', log, 'MAXLEN', it.n) end
    if gone < #entries then break end
  end
  return trimmed
end

-- How long the keys live from now on. `written`: something was appended just now.
local function keep(it, age, linger, written)
  if it.ttl then
    redis.call('PEXPIRE', meta, it.ttl)
    redis.call('PEXPIRE', log, it.ttl)
  elseif it.till then
    redis.call('PEXPIREAT', meta, it.till)
    redis.call('PEXPIREAT', log, it.till)
  elseif age > 0 then
    if written then
      redis.call('PEXPIRE', log, age + 1)
      if not it.made then redis.call('PEXPIRE', meta, age + linger) end
    elseif not it.made and redis.call('PTTL', meta) < linger then
      redis.call('PEXPIRE', meta, linger)
    end
  end
end

-- Adds an append, and says so to whoever has subscribed.
local function add(it, topic, data, messages, own, closes, inline)
  local before = it.low
  it.tail, it.low = it.tail + 1, fingerprint(it.tag, own)
  it.n, it.bytes = it.n + 1, it.bytes + #data
  redis.call('XADD', log, text(it.tail) .. '-' .. it.low, 'd', data, 'm', messages, 't', text(now))
  local whole = #data <= inline
  local head = table.concat({ 'append', text(it.tail), it.low, before, messages, closes and '1' or '0', whole and '1' or '0' }, ' ')
  redis.call('PUBLISH', topic, head .. '\n' .. (whole and data or ''))
end
