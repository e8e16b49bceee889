-- Creates, or finds created in the same way. ARGV: topic, type, idle milliseconds, end in milliseconds since 1970, closed, kind of
-- content (j, b or none), messages, data, tag and own part of a fingerprint, and the request for a fork.
-- The last argument is the time when the name was registered in the index.
--
-- Of a fork, this is the step that makes it visible: its appends are a stream of their own already, KEYS[5]. The next arguments are the source's hash
-- and tag, or nothing to find only a fork that exists; its type, idle milliseconds and end; until when the fork may become visible; the position and
-- fingerprint of the floor and of the end; the bytes up to the floor, and when the first append was made; and the part of the next append that
-- the fork takes over: messages, data. A repeated call answers the same.
local topic, media_type, ttl, till, closed, kind, messages, data =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5] == '1', ARGV[6], ARGV[7], ARGV[8]
local tag, own = tonumber(ARGV[9]), tonumber(ARGV[10])
local fork = ARGV[11]
local of = fork ~= '' and ARGV[12] or ''
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
  if not same then return { 'conflict', it.buried and '1' or '0' } end
  if it.transient then
    settle(it, true)
    keep(it, true)
  elseif not it.made then
    it.made = true
    save_all(it)
    if not it.ttl and not it.till then write('PERSIST', meta) end
  end
  return created(it, of ~= '' and it.tag == tag)
end

local at, atlow, copied
if fork ~= '' then
  if of == '' then return { 'unknown' } end
  if now > tonumber(ARGV[16]) then return { 'late' } end
  at, atlow = tonumber(ARGV[19]), ARGV[20]
  if at > tonumber(ARGV[17]) then
    copied = redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', 1)[1]
    if not copied or copied[1] ~= ARGV[19] .. '-' .. atlow or redis.call('XLEN', KEYS[5]) ~= at - tonumber(ARGV[17]) then
      return { 'lost' }
    end
  end
  media_type = ARGV[13]
  if ttl == '' and till == '' then ttl, till = ARGV[14], ARGV[15] end
end

if not is_registered(ARGV[#ARGV]) then return { 'unindexed' } end
it = make(meta, media_type, tag, own, true, false)
-- Not complete until the end.
creating = it
set_idle(it, ttl)
it.till, it.closed = tonumber(till), closed
save_all(it)
write('PUBLISH', topic, 'made')
if fork ~= '' then
  -- The same appends with the same ids, so that an offset of the source up to here is one of the fork.
  it.floor, it.floorlow, it.floorsum, it.first = tonumber(ARGV[17]), ARGV[18], tonumber(ARGV[21]), tonumber(ARGV[22])
  it.tail, it.low, it.sum = at, atlow, it.floorsum
  if copied then
    write('RENAME', KEYS[5], it.log)
    write('PERSIST', it.log)
    local _, _, sum = struct.unpack(ONE, field(copied, 'm'))
    it.sum = sum
  end
  if ARGV[23] ~= '' then write('PUBLISH', topic, add(it, ARGV[24], ARGV[23], own, false)) end
  write('HSET', meta, 'fork', fork, 'of', of)
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
