-- Compares the cached entries of a node with the logs of many channels. KEYS: the channels. ARGV: for each, packed in one string, the
-- tail of the cached entries, whether the channel exists, whether it is closed, and whether the comparison keeps it alive, because it has
-- readers. Answers for each: 1 if all of this matches, the tail of the log if only the tail differs, 0 otherwise.
local HELD = '<I6I7BBB'

local function is_so(meta, tail, low, made, closed, waited)
  local at = redis.call('HGET', meta, 'at')
  if not at then
    return made == 0 and tonumber(origin(meta)) == low and redis.call('EXISTS', meta) == 0 and 1 or 0
  end
  check_layout(at)
  local _, plain, tag, tail_now, _, low_now, _, _, _, _, kept = struct.unpack(AT, at)
  local created, closed_now, ttl = '0', '0', nil
  if plain == '-' then
    local buried
    _, _, created, ttl, _, closed_now, buried = string.match(redis.call('HGET', meta, 'is'), IS)
    if buried == '1' then return 0 end
  end
  if made == 0 or closed ~= tonumber(closed_now) then return 0 end
  -- Extends the expiry as a read would, if the channel has readers and is transient, has an idle lifetime, or its history is
  -- about to expire.
  ttl = tonumber(ttl)
  if waited == 1 and (ttl or created == '2') then
    keep({ meta = meta, log = log_of(meta), tag = tag, ttl = ttl, transient = true }, false)
  elseif waited == 1 and AGE > 0 and kept + AGE <= now then
    local left = redis.call('PTTL', meta)
    if left >= 0 and left < LINGER then write('PEXPIRE', meta, LINGER) end
  end
  if tail == tail_now and low == low_now then return 1 end
  return string.format('%d-%d', tail_now, low_now)
end

local seen, next = {}, 1
for nth, meta in ipairs(KEYS) do
  local tail, low, made, closed, waited
  tail, low, made, closed, waited, next = struct.unpack(HELD, ARGV[1], next)
  -- A channel that cannot be read is compared as another one: the read that follows reports why.
  local fine, same = pcall(is_so, meta, tail, low, made, closed, waited)
  seen[nth] = fine and same or 0
end
return seen
