-- What a script needs for more than the usual append.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Whether the current operation has changed anything. Every change is made by `write`.
local dirty = false

local function write(...)
  local answer = redis.call(...)
  dirty = true
  return answer
end

local DAMAGED = "DAMAGED the channel's hash is not what any version of this program writes"

-- Raises an error for another layout, which `failure` recognises. Every table that is raised has `err`: Redis 7.0 crashes if a script
-- ends with one that has not.
local function check_layout(at)
  local layout = string.byte(at)
  if layout == LAYOUT and #at == AT_SIZE then return end
  if layout and layout ~= LAYOUT and layout < 32 then error({ err = 'LAYOUT ' .. layout }) end
  error({ err = DAMAGED })
end

-- The answer for an operation that has raised an error: another layout, or the error's text, and whether anything was changed
-- before.
local function failure(thrown)
  local said = type(thrown) == 'table' and thrown.err or tostring(thrown)
  local layout = string.match(said, '^LAYOUT (%d+)$')
  if layout then return { 'layout', layout } end
  -- The server is a replica, so this script has changed nothing. The node has to connect to another server.
  if not dirty and string.find(said, 'READONLY', 1, true) then error(thrown, 0) end
  return { 'failed', said, dirty and '1' or '0' }
end

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
  write('PEXPIRE', was_of(meta), text(SPAN))
  return was
end

local function is_origin(low, of)
  local this, that = tonumber(low), tonumber(of)
  return low == of or (this < 4294967296 and that < 4294967296 and math.abs(this - that) <= 1)
end

-- Whether a channel of that name has ended before this one was created, as far as `origin` could tell. A count of half spans is
-- smaller than any fingerprint of a log.
local function had_predecessor(it)
  return tonumber(it.born) >= 4294967296
end

-- Remembers that there was a channel: for so long after it may be gone.
local function remember(it, lives)
  write('SET', was_of(it.meta), fingerprint(it.tag, 0), 'PX', text(lives + SPAN))
end

-- What seldom changes: tag, the absent tail before it existed, how it came to exist (0 by an append, 1 by a creation, 2 by a
-- broadcast, which makes it transient), idle milliseconds, end, closed, buried.
local IS = '^(%d+) (%d+) (%d) (%S+) (%S+) (%d) (%d)$'

local function pack_at(it)
  local plain = not (it.closed or it.buried or it.ttl or it.till or it.transient)
  return struct.pack(AT, LAYOUT, plain and (is_json(it.type) and 'j' or 'b') or '-', it.tag, it.tail, it.floor, tonumber(it.low),
    tonumber(it.floorlow), it.sum, it.floorsum, it.first, it.kept)
end

local function save(it)
  write('HSET', it.meta, 'at', pack_at(it))
end

local function save_all(it)
  local is = table.concat({ text(it.tag), it.born, it.transient and '2' or it.made and '1' or '0', it.ttl and text(it.ttl) or '-',
    it.till and text(it.till) or '-', it.closed and '1' or '0', it.buried and '1' or '0' }, ' ')
  write('HSET', it.meta, 'is', is, 'at', pack_at(it))
end

-- The forks of a channel are a sorted set: of each the name of its hash and its tag. The score is how far the node is that makes it:
-- a pin, until its deadline in milliseconds since 1970; a member from `COMMITTED` on, of which the node has yet to make the fork visible,
-- or to say that it has, until a deadline that is added; and a member for good (`inf`).
--
-- Pins expire by themselves. A member whose fork does not exist is released by a node: see `settle.rs`.
local COMMITTED = 4503599627370496

-- Whether a channel has forks, or forks that are being made.
local function has_forks(meta)
  return redis.call('ZCOUNT', forks_of(meta), text(now), '+inf') > 0
end

-- Where there are pins only: sets the expiry of what they keep to the last of them.
local function expire_with_pins(meta, key)
  local last = redis.call('ZREVRANGE', forks_of(meta), 0, 0, 'WITHSCORES')[2]
  if last and tonumber(last) < COMMITTED then write('PEXPIREAT', key, text(tonumber(last) + 1)) end
end

-- What a node needs to release a channel that was removed: the source it is a fork of, with its tag, and what it is called there.
local orphan = { '', '' }

-- Removes a channel. The node then releases its source: see `orphan`.
local function remove(it)
  orphan = { redis.call('HGET', it.meta, 'of') or '', it.meta .. ' ' .. text(it.tag) }
  write('UNLINK', it.meta, log_of(it.meta), forks_of(it.meta))
end

-- Returns a channel, or nil if it does not exist. Raises an error if this layout cannot read it.
local function load(meta)
  local v = redis.call('HMGET', meta, 'type', 'is', 'at')
  if not v[3] then
    if redis.call('EXISTS', meta) == 0 then return nil end
    error({ err = DAMAGED })
  end
  check_layout(v[3])
  local it = { meta = meta, log = log_of(meta), type = v[1] }
  local tag, born, made, ttl, till, closed, buried = string.match(v[2] or '', IS)
  if not v[1] or not tag then error({ err = DAMAGED }) end
  it.tag, it.born, it.made, it.closed, it.buried = tonumber(tag), born, made == '1', closed == '1', buried == '1'
  it.transient, it.ttl, it.till = made == '2', tonumber(ttl), tonumber(till)
  if it.buried and not has_forks(meta) then
    remove(it)
    return nil
  end
  local _, _, _, tail, floor, low, floorlow, sum, floorsum, first, kept = struct.unpack(AT, v[3])
  it.tail, it.low, it.floor, it.floorlow = tail, text(low), floor, text(floorlow)
  it.sum, it.floorsum, it.first, it.kept = sum, floorsum, first, kept
  if tail > floor and redis.call('EXISTS', it.log) == 0 then
    -- All of it has aged out, or was evicted: where it ended is still known.
    it.floor, it.floorlow, it.floorsum = it.tail, it.low, it.sum
  end
  return it
end

-- Whether a name was registered in the index at this time in milliseconds, and so shortly ago that no node can have removed it since: a
-- channel may be created only then. Empty or nil if it was not registered. See `index.rs`.
local function is_registered(at)
  local registered = tonumber(at)
  return registered and now - registered <= REGISTERED
end

-- The channel that is being created. If that fails, `recover` removes it.
local creating

-- Creates a channel that does not exist. Removes a stream without a hash, which an eviction has left.
local function make(meta, media_type, tag, own, made, transient)
  local low, born = fingerprint(tag, own), origin(meta)
  local it = {
    meta = meta, log = log_of(meta),
    type = media_type, tag = tag, tail = 0, low = low, floor = 0, floorlow = low, sum = 0, floorsum = 0,
    closed = false, made = made, transient = transient, born = born, first = now, kept = 0,
  }
  creating = it
  -- What needs memory comes first: once a script has written, Redis does not refuse its writes for lack of memory.
  write('HSET', meta, 'type', media_type)
  save_all(it)
  write('UNLINK', it.log, forks_of(meta), was_of(meta))
  creating = nil
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
      write('UNLINK', it.log)
    elseif gone > 0 then
      write('XTRIM', it.log, 'MAXLEN', it.tail - it.floor)
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
    write('PEXPIRE', it.meta, idle)
    write('PEXPIRE', it.log, idle)
    remember(it, idle)
  elseif it.till then
    write('PEXPIREAT', it.meta, it.till)
    write('PEXPIREAT', it.log, it.till)
    if written then remember(it, math.max(it.till - now, 0)) end
  elseif AGE > 0 then
    if written and it.kept + SPARE <= now then
      it.kept = now
      save(it)
      write('PEXPIRE', it.log, text(AGE + SPARE + 1))
      if not it.made then write('PEXPIRE', it.meta, text(AGE + SPARE + LINGER)) end
    elseif not written and not it.made and redis.call('PTTL', it.meta) < LINGER then
      write('PEXPIRE', it.meta, LINGER)
    end
  end
end

-- Turns a transient channel into an ordinary one. The caller sets its expiry by `keep`.
local function settle(it, made)
  it.transient, it.made, it.kept = false, made, 0
  save_all(it)
  write('PERSIST', it.meta)
  write('PERSIST', it.log)
end

-- Sets the tail to the stream's last id, if that is another one. Returns whether it was.
local function catch_up(it)
  local last = redis.call('XREVRANGE', it.log, '+', '-', 'COUNT', 1)[1]
  if not last then return false end
  local at, low = split(last[1])
  if at == it.tail and low == it.low or math.floor(tonumber(low) / 4294967296) ~= it.tag then return false end
  local _, _, sum = struct.unpack(ONE, field(last, 'm'))
  it.tail, it.low, it.sum = at, low, sum
  return true
end

-- After an operation on a channel has failed: writes its tail anew, and has the nodes read it.
local function mend(meta, topic)
  local it = load(meta)
  if not it then return end
  if catch_up(it) then save(it) end
  redis.call('PUBLISH', topic, 'made')
end

-- Adds an append to the stream, and saves the channel. Returns what the caller publishes once all else is done.
local function add(it, data, messages, own, closes)
  -- A stream that is made now has no expiry yet.
  if it.tail == it.floor then it.first, it.kept = now, 0 end
  local before
  -- The hash first, as in `append_fast.lua`. Returns the error if the entry is refused.
  local function try()
    local tail, sum, was = it.tail, it.sum, dirty
    before = it.low
    local held = pack_at(it)
    it.tail, it.low, it.sum = tail + 1, fingerprint(it.tag, own), sum + #data
    save(it)
    local id = text(it.tail) .. '-' .. it.low
    local added = redis.pcall('XADD', it.log, id, 'd', data, 'm', struct.pack(ONE, messages, now, it.sum))
    if type(added) ~= 'table' or not added.err then return nil end
    it.tail, it.low, it.sum = tail, before, sum
    write('HSET', it.meta, 'at', held)
    dirty = was
    return added
  end
  local refused = try()
  if refused and catch_up(it) then refused = try() end
  if refused then error(refused) end
  local whole = #data <= INLINE
  local head = struct.pack(HEARD, it.tail, tonumber(it.low), tonumber(before), messages, (closes and 1 or 0) + (whole and 2 or 0))
  return '+' .. head .. (whole and data or '')
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

-- After an operation on a channel has failed: removes the channel if its creation was not complete. Otherwise writes its tail anew,
-- if anything was changed.
local function recover(meta, topic)
  if creating then
    pcall(redis.call, 'UNLINK', creating.meta, creating.log)
    creating = nil
  elseif dirty and topic then
    pcall(mend, meta, topic)
  end
end

-- Answers what an operation on the channel of the first key returns, or how it failed.
local function guarded(operation, topic)
  local fine, answer = pcall(operation)
  if fine then return answer end
  answer = failure(answer)
  recover(KEYS[1], topic)
  return answer
end
