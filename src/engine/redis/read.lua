-- What there is from a place. ARGV: where (earliest, tail, origin, after, window), position and fingerprint of `after`, bytes,
-- whether this keeps an idle channel alive, then what is kept: appends, bytes, age, linger.
local where, position, low, limit, touches = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local appends, bytes, age, linger = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])

local it = load()
if not it then return { 'unknown' } end
if touches then keep(it, age, linger, false) end
if trim(it, appends, bytes, age) then save(it) end

-- The place just before what is read, or why there is none.
local from, fromlow, reason = it.floor, it.floorlow, ''
if where == 'tail' then
  from, fromlow = it.tail, it.low
elseif where == 'origin' then
  if it.floor > 0 then reason = 'trimmed' end
elseif where == 'after' then
  local at = tonumber(position)
  local ours = math.floor(tonumber(low) / 4294967296) == it.tag or (at == 0 and low == '0')
  if (at == it.floor and low == it.floorlow) or (at == 0 and low == '0' and it.floor == 0) then
    -- The floor itself, or before anything while nothing has been let go.
  elseif at > it.tail then
    reason = ours and 'ahead' or 'other-log'
  elseif at <= it.floor then
    reason = ours and 'trimmed' or 'other-log'
  else
    local id = position .. '-' .. low
    if #redis.call('XRANGE', log, id, id, 'COUNT', 1) == 1 then
      from, fromlow = at, low
    else
      reason = 'other-log'
    end
  end
end

local function entry(it)
  local dash = string.find(it[1], '-')
  return { string.sub(it[1], dash + 1), field(it, 'm'), field(it, 'd') }, tonumber(string.sub(it[1], 1, dash - 1))
end

local found, size = {}, 0
if reason ~= '' then
  -- Nothing is read.
elseif where == 'window' then
  -- As much as fits, from the end.
  local newest = {}
  for _, one in ipairs(it.n > 0 and redis.call('XREVRANGE', log, '+', '-', 'COUNT', 64) or {}) do
    local this, at = entry(one)
    size = size + #this[3]
    if #newest > 0 and size > limit then
      from, fromlow = at, this[1]
      break
    end
    newest[#newest + 1] = this
    -- The place before it is known by the one that comes next; if none does, it is the floor.
    if #newest == 64 and it.n > 64 then
      newest[#newest] = nil
      from, fromlow = at, this[1]
    end
  end
  for at = #newest, 1, -1 do found[#found + 1] = newest[at] end
else
  local next, full = from + 1, it.n == 0
  while not full do
    local some = redis.call('XRANGE', log, text(next) .. '-0', '+', 'COUNT', 64)
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
  it.ttl and text(it.ttl) or '', it.till and text(it.till) or '', left, text(it.n), text(from), fromlow, found,
}
