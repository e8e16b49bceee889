-- Finds out what became of appends that were acknowledged. KEYS: the channel and the log of each. ARGV: the position and the fingerprint
-- of each. Answers for each: `kept`, also if it has been trimmed; `ended` if the channel was deleted or has expired since; `lost` if the
-- channel exists, and its log does not have the append; `missing` if the channel does not exist; `unknown`.
local function tag_of(low)
  return math.floor(tonumber(low) / 4294967296)
end

-- What was lost with the append may have been a producer: see `append_slow.lua`. Redis may refuse the write, which changes nothing of the
-- answer.
local function lost(meta)
  redis.pcall('HSET', meta, 'forgot', '1')
  return 'lost'
end

local function fate(meta, position, low)
  local tag = tag_of(low)
  local is = redis.call('HGET', meta, 'is')
  if is and string.match(is, '1$') then return 'ended' end
  local it = load(meta)
  if not it then
    -- A channel that was deleted, or had a lifetime, has left this. It remains for SPAN after the end of the lifetime: if it is to
    -- remain for longer, the channel should exist.
    local was = redis.call('GET', was_of(meta))
    local ended = was and tag_of(was) == tag and redis.call('PTTL', was_of(meta)) <= SPAN
    return ended and 'ended' or 'missing'
  end
  -- The newest append is trimmed by age only, and nobody asks for one that old: the log was evicted.
  if tonumber(position) == it.tail and redis.call('EXISTS', it.log) == 0 then return lost(meta) end
  local at, reason = locate(it, 'after', position, low)
  if at or reason == 'trimmed' then return 'kept' end
  -- The absent tail before a channel existed has the tag of the log before it, if that was deleted or had a lifetime.
  return it.tag ~= tag and tag_of(it.born) == tag and 'ended' or lost(meta)
end

local fates = {}
for nth = 1, #KEYS / 2 do
  local fine, answer = pcall(fate, KEYS[2 * nth - 1], ARGV[2 * nth - 1], ARGV[2 * nth])
  fates[nth] = fine and answer or 'unknown'
end
return fates
