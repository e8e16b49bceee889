-- One step of a node that makes or releases forks of a channel. Touches only the keys of this channel, and may be repeated. ARGV: the step,
-- and what it needs.
local meta, forks, step = KEYS[1], forks_of(KEYS[1]), ARGV[1]

local it = load(meta)

-- The members that have ended, or none: the last one removes a tombstone.
local function release(members)
  for at = members, #ARGV do
    local score = tonumber(redis.call('ZSCORE', forks, ARGV[at]) or nil)
    -- Not one that is being made: it may become visible still.
    local pinned = score and score ~= math.huge and (score >= COMMITTED and score - COMMITTED or score) > now
    if score and (ARGV[3] == '1' or not pinned) then write('ZREM', forks, ARGV[at]) end
  end
  if it.buried and not has_forks(meta) then
    remove(it)
    return { 'removed', orphan[1], orphan[2] }
  end
  expire_with_pins(meta, forks)
  return { 'kept' }
end

if step == 'release' then
  -- The channel's tag; whether they are given up by the node that was making them; the members.
  if not it then
    -- It has expired, or was a tombstone until now.
    write('UNLINK', forks)
    return { 'removed', orphan[1], orphan[2] }
  end
  if text(it.tag) ~= ARGV[2] then return { 'kept' } end
  return release(4)
elseif step == 'forks' then
  -- Of a tombstone: some of the members that may have ended. The first member and the number of members.
  if not it then return { 'removed', orphan[1], orphan[2] } end
  if not it.buried then return { 'open' } end
  local found = {}
  -- One that was to become visible and has not, first.
  for _, range in ipairs({ { text(COMMITTED), '(' .. text(COMMITTED + now) }, { '+inf', '+inf' } }) do
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', forks, range[1], range[2], 'LIMIT', 0, ARGV[2])) do
      found[#found + 1] = member
    end
  end
  return { 'forks', text(it.tag), found }
end

-- All else is a step of making a fork: its member, for how long it is pinned, and, but for the first step, the channel's tag.
local member, lifetime, tag = ARGV[2], tonumber(ARGV[3]), ARGV[4]
if not it or (step ~= 'pin' and text(it.tag) ~= tag) then return { 'unknown' } end
if step == 'confirm' then
  if redis.call('ZSCORE', forks, member) then write('ZADD', forks, '+inf', member) end
  return { 'confirmed' }
end
if it.buried then return { 'deleted' } end

-- Pins the channel for a fork, or again. Does not keep an idle channel alive.
local function pin()
  write('ZREMRANGEBYSCORE', forks, '-inf', '(' .. text(now))
  write('ZADD', forks, text(now + lifetime), member)
  expire_with_pins(meta, forks)
end

if step == 'commit' then
  write('ZADD', forks, text(COMMITTED + now + math.floor(lifetime / 2)), member)
  write('PERSIST', forks)
  -- Until when the fork may become visible. Its member is not released for as long again.
  return { 'committed', text(now + math.floor(lifetime / 4)) }
elseif step == 'pin' then
  -- Where (tail, origin, earliest or after), position, fingerprint, type, whether the append that follows is needed.
  local where, position, low, media_type, next = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'
  if trim(it) then save(it) end
  local at, atlow = locate(it, where, position, low)
  if not at or (next and at == it.tail) then return { 'fork-offset' } end
  if media_type ~= '' and essence(media_type) ~= essence(it.type) then return { 'type', it.type } end
  local part = { '', '', '' }
  if next then
    local one = redis.call('XRANGE', it.log, text(at + 1) .. '-0', '+', 'COUNT', 1)[1]
    local _, nextlow = split(one[1])
    part = { nextlow, text((struct.unpack(ONE, field(one, 'm')))), field(one, 'd') }
  end
  pin()
  return {
    'pinned', it.type, text(it.tag), idle_of(it), it.till and text(it.till) or '', text(at), atlow, text(it.floor), it.floorlow,
    text(it.floorsum), text(it.first), part,
  }
end

-- A slice: the position up to which the node has copied, that of the end, how many appends and bytes at most. The first append
-- is returned whatever its size.
local from, last, most, bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
pin()
if from < it.floor then return { 'trimmed', text(it.floor), it.floorlow, text(it.floorsum), text(it.first) } end
local found, next = {}, from + 1
last = math.min(last, from + most)

local function sum_at(position)
  local one = redis.call('XRANGE', it.log, text(position) .. '-0', '+', 'COUNT', 1)[1]
  return select(3, struct.unpack(ONE, field(one, 'm')))
end

-- The entries themselves know how many bytes they are together, so no more is fetched than fits.
local copied = from == it.floor and it.floorsum or sum_at(from)
local limit, count = copied + bytes, 64
while next <= last and count > 0 do
  count = math.min(count, last - next + 1)
  local upto = sum_at(next + count - 1)
  if upto <= limit or (count == 1 and next == from + 1) then
    for _, one in ipairs(redis.call('XRANGE', it.log, text(next) .. '-0', '+', 'COUNT', count)) do
      found[#found + 1], found[#found + 2], found[#found + 3] = one[1], field(one, 'd'), field(one, 'm')
    end
    next = next + count
    if upto >= limit then break end
  else
    count = math.floor(count / 2)
  end
end
return { 'slice', found }
