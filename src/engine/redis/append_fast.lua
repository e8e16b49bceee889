-- Appends of one node, to the same channels or to others, in this order. KEYS: for each its channel and its log.
-- ARGV: for each its topic, its data, and all else, packed: this part reads only the beginning of the latter. Then the time when the
-- names of these channels were registered in the index, if they were: without it, no channel is created.
--
-- This makes the usual append: to a channel that exists, is open, of the right type and without a lifetime of its own, and not by a
-- producer. It uses none of the functions that follow, because defining them costs Redis more than this. Any other append, and
-- every later one to the same channel, is left to `append_slow.lua`.
--
-- Answers one item for each append. An append that fails changes nothing of the answers of others.
local call, pcall_of, pack, unpack, format = redis.call, redis.pcall, struct.pack, struct.unpack, string.format
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answers, later, trims, torn = {}, nil, nil, nil
-- The number of the current append, and whether it has changed anything.
local nth, count, changed = 0, #KEYS / 2, false

local function usual()
  while nth < count do
    nth, changed = nth + 1, false
    local meta, log, of = KEYS[2 * nth - 1], KEYS[2 * nth], 3 * nth
    local done = false
    repeat
      local kind, messages, own, length, rest = unpack(WISH, ARGV[of])
      if kind == '-' or (later and later[meta]) then break end
      local held
      if length == 0 then
        held = call('HGET', meta, 'at')
      else
        local v = call('HMGET', meta, 'type', 'at')
        held = v[1] == string.sub(ARGV[of], rest, rest + length - 1) and v[2]
      end
      if not held or #held ~= AT_SIZE then break end
      local layout, plain, tag, tail, floor, low, floorlow, sum, floorsum, first, kept = unpack(AT, held)
      if layout ~= LAYOUT or plain ~= kind or kept + SPARE <= now then break end

      local data, before = ARGV[of - 1], low
      tail, low, sum = tail + 1, tag * 4294967296 + own, sum + #data
      -- Readers trim first, so nobody sees the few appends that are too many until then: trimming them together costs less.
      local sixteenth, trimmed, doubt = tail % 16 == 0, false, false
      if sixteenth and tail - floor > APPENDS then
        local two = call('XRANGE', log, format('%d', tail - APPENDS), '+', 'COUNT', 2)
        local last, next = two[1], two[2]
        -- An entry has two fields, and the second is of this size. The newest of them may be the one that is not added yet.
        if next and #last[2] == 4 and #next[2] == 4 and #last[2][4] == ONE_SIZE and #next[2][4] == ONE_SIZE then
          local _
          floor, floorlow = string.match(last[1], '^(%d+)-(%d+)$')
          _, _, floorsum = unpack(ONE, last[2][4])
          _, first = unpack(ONE, next[2][4])
          trimmed = true
        else
          doubt = true
        end
      end

      -- The hash first: if Redis then refuses the entry, the hash is set back. In the other order, an entry could remain beyond the tail,
      -- and the next append be added at the same position.
      call('HSET', meta, 'at', pack(AT, LAYOUT, kind, tag, tail, floor, low, floorlow, sum, floorsum, first, kept))
      changed = true
      local id = format('%d-%d', tail, low)
      -- Refused if the stream does not exist, because it has expired or was evicted; if its last id is not below this one; and before
      -- Redis 6.2, which does not know NOMKSTREAM.
      if pcall_of('XADD', log, 'NOMKSTREAM', id, 'd', data, 'm', pack(ONE, messages, now, sum)) ~= id then
        call('HSET', meta, 'at', held)
        changed = false
        break
      end
      done = true
      if trimmed then call('XTRIM', log, 'MAXLEN', APPENDS) end
      local bytes = sum - floorsum
      if bytes > 2 * BYTES or sixteenth and (bytes > BYTES or first + OLD < now or doubt) then
        trims = trims or {}
        trims[#trims + 1] = meta
      end
      local whole = #data <= INLINE
      call('PUBLISH', ARGV[of - 2], '+' .. pack(HEARD, tail, low, before, messages, whole and 2 or 0) .. (whole and data or ''))
      answers[nth] = id
    until true
    if not done then
      later = later or {}
      later[#later + 1] = nth
      later[meta] = true
    end
  end
end

-- One `pcall` for all appends. After an append that fails, it is entered again for the next one.
while true do
  local fine, thrown = pcall(usual)
  if fine then break end
  later = later or {}
  later[KEYS[2 * nth - 1]] = true
  if changed then
    torn = torn or {}
    torn[#torn + 1] = nth
    answers[nth] = thrown
  else
    later[#later + 1] = nth
  end
end

if not later and not trims then return answers end
