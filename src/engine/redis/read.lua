-- Reads a channel. ARGV: where to start (earliest, tail, origin, after, window), the position and fingerprint of `after`, how many
-- bytes to return at most, and whether this keeps an idle channel alive. The first append is returned whatever its size.
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
  -- At most READ appends, as in memory. Positions have no gaps, so this is where the answer ends at the latest.
  local next, last = from + 1, math.min(it.tail, from + READ)
  -- Not many more entries are fetched than fit, going by the average of the log.
  local average = math.max(1, (it.sum - it.floorsum) / math.max(1, it.tail - it.floor))
  -- No append is empty: once the limit is reached, nothing more fits.
  while next <= last and (size < limit or #found == 0) do
    local count = math.min(64, last - next + 1, math.max(1, math.ceil((limit - size) / average)))
    local some = redis.call('XRANGE', it.log, text(next) .. '-0', '+', 'COUNT', count)
    for _, one in ipairs(some) do
      local this = entry(one)
      size = size + #this[3]
      if #found > 0 and size > limit then break end
      found[#found + 1] = this
      next = next + 1
    end
    if #some < count then break end
  end
end

local left = ''
if it.till then left = text(math.max(it.till - now, 0)) end
return {
  'found', reason, it.type, text(it.tag), it.closed and '1' or '0', text(it.tail), it.low, text(it.floor), it.floorlow,
  idle_of(it), it.till and text(it.till) or '', left, text(it.tail - it.floor), it.born, text(from), fromlow, found,
}
