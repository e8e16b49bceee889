-- Appends that one node makes at the same time, to the same channels or to others, in their order. KEYS: for each its channel and its log.
-- ARGV: for each its topic, its data, and all else, packed: of the latter only the beginning is looked at here.
--
-- This is the usual append: to a channel that is there, open, of the right type and without a lifetime of its own, by nobody who counts.
-- It does without what follows: what defines the functions there costs Redis more than this. What is not so, and what comes
-- after such a one to the same channel, is left for later.
local call, pcall_of, pack, unpack, format = redis.call, redis.pcall, struct.pack, struct.unpack, string.format
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local answers, written, later, trims = {}, false, nil, nil

for nth = 1, #KEYS / 2 do
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
    if not held then break end
    local plain, tag, tail, floor, low, floorlow, sum, floorsum, first, kept = unpack(AT, held)
    if plain ~= kind or kept + SPARE <= now then break end

    local data, before = ARGV[of - 1], low
    tail, low, sum = tail + 1, tag * 4294967296 + own, sum + #data
    local id = format('%d-%d', tail, low)
    -- Not if the stream is gone, by age or eviction; nor before Redis 6.2, which does not know the word.
    if pcall_of('XADD', log, 'NOMKSTREAM', id, 'd', data, 'm', pack(ONE, messages, now, sum)) ~= id then break end
    done, written = true, true

    -- Whoever reads trims first, so that nobody sees what is a few appends too many: together they cost less.
    local sixteenth, doubt = tail % 16 == 0, false
    if sixteenth and tail - floor > APPENDS then
      local two = call('XRANGE', log, format('%d', tail - APPENDS), '+', 'COUNT', 2)
      local last, next = two[1], two[2]
      if next and #last[2] == 4 and #next[2] == 4 then
        local _
        floor, floorlow = string.match(last[1], '^(%d+)-(%d+)$')
        _, _, floorsum = unpack(ONE, last[2][4])
        _, first = unpack(ONE, next[2][4])
        call('XTRIM', log, 'MAXLEN', APPENDS)
      else
        doubt = true
      end
    end
    local bytes = sum - floorsum
    if bytes > 2 * BYTES or sixteenth and (bytes > BYTES or first + OLD < now or doubt) then
      trims = trims or {}
      trims[#trims + 1] = meta
    end
    call('HSET', meta, 'at', pack(AT, kind, tag, tail, floor, low, floorlow, sum, floorsum, first, kept))
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

if not later and not trims then return answers end
