-- What there is from a place. ARGV: where (earliest, tail, origin, after, window), position and fingerprint of `after`, bytes,
-- whether this keeps an idle channel alive.
local where, position, low, limit, touches = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'

local it = load(KEYS[1])
if not it then
  local now_at = origin(KEYS[1])
  local good = where ~= 'after' or (tonumber(position) == 0 and is_origin(low, now_at))
  return { 'unknown', '0', now_at, good and '1' or '0' }
end
if it.buried then return is_deleted(it) end
if touches then keep(it, false) end
if trim(it) then save(it) end

local from, fromlow = locate(it, where, position, low)
local reason = ''
if not from then from, fromlow, reason = it.floor, it.floorlow, fromlow end

local function entry(one)
  local at, low = split(one[1])
  return { low, text((struct.unpack(ONE, field(one, 'm')))), field(one, 'd') }, at
end

local found, size = {}, 0
if reason ~= '' then
  -- Nothing is read.
elseif where == 'window' then
  -- As much as fits, from the end.
  local newest = {}
  for _, one in ipairs(it.tail > it.floor and redis.call('XREVRANGE', it.log, '+', '-', 'COUNT', 64) or {}) do
    local this, at = entry(one)
    size = size + #this[3]
    if #newest > 0 and size > limit then
      from, fromlow = at, this[1]
      break
    end
    newest[#newest + 1] = this
    -- The place before it is known by the one that comes next; if none does, it is the floor.
    if #newest == 64 and it.tail - it.floor > 64 then
      newest[#newest] = nil
      from, fromlow = at, this[1]
    end
  end
  for at = #newest, 1, -1 do found[#found + 1] = newest[at] end
else
  local next, full = from + 1, it.tail == it.floor
  while not full do
    local some = redis.call('XRANGE', it.log, text(next) .. '-0', '+', 'COUNT', 64)
    for _, one in ipairs(some) do
      local this = entry(one)
      size = size + #this[3]
      if #found > 0 and size > limit then full = true break end
      found[#found + 1] = this
      next = next + 1
    end
    if #some < 64 then full = true end
  end
end

local left = ''
if it.till then left = text(math.max(it.till - now, 0)) end
return {
  'found', reason, it.type, text(it.tag), it.closed and '1' or '0', text(it.tail), it.low, text(it.floor), it.floorlow,
  it.ttl and text(it.ttl) or '', it.till and text(it.till) or '', left, text(it.tail - it.floor), it.born, text(from), fromlow, found,
}
