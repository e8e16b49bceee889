-- Creates, or finds created in the same way; also as a fork. ARGV: topic, type, idle milliseconds, end in milliseconds since
-- 1970, closed, kind of content (j, b or none), messages, data, tag and own part of a fingerprint. Then of a fork: how it was asked
-- for, its source's hash, where (tail, origin, earliest, after or nowhere), position, fingerprint, and the part of the next append
-- that it takes over: messages, data, fingerprint. Last, the time when the name was registered in the index.
local topic, media_type, ttl, till, closed, kind, messages, data =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], ARGV[8]
local tag, own = tonumber(ARGV[9]), tonumber(ARGV[10])
local fork = ARGV[11]
local meta = KEYS[1]

local function created(it, fresh)
  return { 'created', text(it.tail), it.low, it.closed and '1' or '0', it.type, fresh and '1' or '0' }
end

local it = load(meta)
if it then
  local lives = idle_of(it) == ttl and (it.till or '') == (tonumber(till) or '')
  -- A fork may leave its type and its lifetime to its source.
  local left = fork ~= '' and ttl == '' and till == ''
  local same = not it.buried and (media_type == '' or essence(it.type) == essence(media_type)) and (lives or left)
    and it.closed == closed and (redis.call('HGET', meta, 'fork') or '') == fork
  if not same then return { 'conflict' } end
  if it.transient then
    settle(it, true)
    keep(it, true)
  elseif not it.made then
    it.made = true
    save_all(it)
    if not it.ttl and not it.till then write('PERSIST', meta) end
  end
  return created(it, false)
end

local source, at, atlow
if fork ~= '' then
  source = load(ARGV[12])
  if not source or ARGV[13] == 'nowhere' and not source.buried then return { 'unknown' } end
  if source.buried then return { 'conflict' } end
  if trim(source) then save(source) end
  at, atlow = locate(source, ARGV[13], ARGV[14], ARGV[15])
  if not at then return { 'fork-offset' } end
  if media_type ~= '' and essence(media_type) ~= essence(source.type) then return { 'type', source.type } end
  media_type = source.type
  if ttl == '' and till == '' then
    ttl, till = idle_of(source), source.till and text(source.till) or ''
  end
end

if not is_registered(ARGV[#ARGV]) then return { 'unindexed' } end
it = make(meta, media_type, tag, own, true, false)
-- Not complete until the end.
creating = it
set_idle(it, ttl)
it.till, it.closed = tonumber(till), closed
save_all(it)
write('PUBLISH', topic, 'made')
if source then
  -- The same appends with the same ids, so that an offset of the source up to here is one of the fork.
  it.floor, it.floorlow, it.floorsum, it.first = source.floor, source.floorlow, source.floorsum, source.first
  it.tail, it.low, it.sum = it.floor, it.floorlow, it.floorsum
  while it.tail < at do
    for _, one in ipairs(redis.call('XRANGE', source.log, text(it.tail + 1) .. '-0', text(at) .. '-' .. atlow, 'COUNT', 64)) do
      write('XADD', it.log, one[1], 'd', field(one, 'd'), 'm', field(one, 'm'))
      it.tail, it.low = split(one[1])
      it.sum = it.sum + #field(one, 'd')
    end
  end
  if ARGV[16] ~= '' then
    local next = text(at + 1) .. '-' .. ARGV[18]
    if #redis.call('XRANGE', source.log, next, next) == 0 then
      write('UNLINK', meta, it.log)
      creating = nil
      return { 'fork-offset' }
    end
    write('PUBLISH', topic, add(it, ARGV[17], ARGV[16], own, false))
  end
  write('SADD', forks_of(source.meta), meta)
  write('HSET', meta, 'fork', fork, 'of', source.meta .. ' ' .. text(source.tag))
end
if kind ~= '' then
  -- Not the fingerprint of the part before.
  write('PUBLISH', topic, add(it, data, messages, (own + 1) % 4294967296, closed))
end
save(it)
if closed and kind == '' then
  write('PUBLISH', topic, table.concat({ 'closed', text(it.tail), it.low }, ' '))
end
keep(it, it.tail > it.floor)
creating = nil
return created(it, true)
