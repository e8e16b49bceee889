-- What the short script has left: appends, closes, or both, on whatever terms. Packed after what the usual append is given: type to create
-- with, kind of content (j, b or -), close, Stream-Seq, producer's id, epoch and number, tag of a fingerprint, id of the broadcast that
-- the append is part of (8 bytes, or none).

-- Byte by byte, whatever the server's locale.
local function is_after(a, b)
  for at = 1, math.min(#a, #b) do
    local x, y = string.byte(a, at), string.byte(b, at)
    if x ~= y then return x > y end
  end
  return #a > #b
end

local function append(nth)
  local meta, of = KEYS[2 * nth - 1], 3 * nth
  local topic, data = ARGV[of - 2], ARGV[of - 1]
  local _, messages, own, said, create, kind, closes, seq, id, epoch, number, tag, broadcast =
    struct.unpack('<c1I4I4I4c0I4c0c1BI4c0I4c0I8I8I4I4c0', ARGV[of])
  closes = closes == 1

  local it = load(meta)
  if it and it.buried then return is_deleted(it) end
  local fresh = not it
  if fresh then
    if create == '' then return { 'unknown' } end
    it = { type = create, closed = false }
  end

  local known = id ~= '' and not fresh and redis.call('HGET', meta, 'p:' .. id)
  local last_epoch, last_number
  if known then
    local a, b = string.match(known, '^(%d+) (%d+)')
    last_epoch, last_number = tonumber(a), tonumber(b)
  end

  -- What a producer's message is: to be accepted, one that was before, or refused.
  local function admit()
    if id == '' then return 'accept' end
    if not known then
      if number == 0 then return 'accept' end
      -- A channel that appends create may have existed before. One that was created may have forgotten producers, or have had one
      -- of its name before it, whose producers it does not know.
      if create ~= '' or had_predecessor(it) or redis.call('HGET', meta, 'forgot') then
        return 'unknown-producer', { 'unknown-producer', text(epoch) }
      end
      return 'gap', { 'gap', '0', text(number) }
    end
    if epoch < last_epoch then return 'fenced', { 'fenced', text(last_epoch) } end
    if epoch > last_epoch then
      if number == 0 then return 'accept' end
      return 'epoch', { 'epoch' }
    end
    if number <= last_number then return 'duplicate' end
    if number == last_number + 1 then return 'accept' end
    return 'gap', { 'gap', text(last_number + 1), text(number) }
  end

  local function done(closed, duplicate, e, n)
    return { 'done', text(it.tail), it.low, closed and '1' or '0', duplicate and '1' or '0', e or '', n or '' }
  end

  if it.closed then
    if id == '' then
      if closes and kind == '-' then return done(true, true) end
    else
      if redis.call('HGET', meta, 'by') == table.concat({ text(epoch), text(number), id }, ' ') then
        return done(true, true, text(epoch), text(number))
      end
      local verdict, refusal = admit()
      if verdict == 'fenced' then return refusal end
    end
    return { 'closed' }
  end

  if kind ~= '-' then
    local typed = said == '' or essence(said) == essence(it.type)
    if not typed or is_json(it.type) ~= (kind == 'j') then return { 'type', it.type } end
  end

  -- Several nodes may append one broadcast, so its id is compared with the last 8. These are as many bytes as Redis
  -- stores in a small hash.
  local broadcasts = broadcast ~= '' and not fresh and redis.call('HGET', meta, 'broadcasts') or ''
  for at = 1, #broadcasts, 8 do
    if string.sub(broadcasts, at, at + 7) == broadcast then return done(false, true) end
  end

  local verdict, refusal = admit()
  if verdict == 'duplicate' then return done(false, true, text(last_epoch), text(last_number)) end
  if refusal then return refusal end

  if seq ~= '' and not fresh then
    local last = redis.call('HGET', meta, 'seq')
    if last and not is_after(seq, last) then return { 'sequence' } end
  end

  if fresh then
    if not is_registered(ARGV[3 * count + 1]) then return { 'unindexed' } end
    it = make(meta, create, tag, own, false, broadcast ~= '')
    write('PUBLISH', topic, 'made')
  end
  local publication
  if kind ~= '-' then
    publication = add(it, data, messages, own, closes)
    if (it.tail % 16 == 0 or it.sum - it.floorsum > 2 * BYTES) and trim(it) then save(it) end
  end
  if broadcast ~= '' then
    write('HSET', meta, 'broadcasts', string.sub(broadcasts .. broadcast, -64))
  elseif it.transient then
    settle(it, false)
  end
  if seq ~= '' then write('HSET', meta, 'seq', seq) end
  if id ~= '' then
    local heard = write('HINCRBY', meta, 'heard', 1)
    if not known and write('HINCRBY', meta, 'producers', 1) > PRODUCERS then
      -- One too many: the one that was silent the longest is forgotten.
      local silent, since
      local all = redis.call('HGETALL', meta)
      for at = 1, #all, 2 do
        if string.sub(all[at], 1, 2) == 'p:' then
          local when = tonumber(string.match(all[at + 1], '(%d+)$'))
          if not since or when < since then silent, since = all[at], when end
        end
      end
      if silent then
        write('HDEL', meta, silent)
        write('HINCRBY', meta, 'producers', -1)
        write('HSET', meta, 'forgot', '1')
      end
    end
    write('HSET', meta, 'p:' .. id, table.concat({ text(epoch), text(number), text(heard) }, ' '))
  end
  if closes then
    it.closed = true
    save_all(it)
    if id ~= '' then write('HSET', meta, 'by', table.concat({ text(epoch), text(number), id }, ' ')) end
  end
  keep(it, true)
  publication = publication or closes and table.concat({ 'closed', text(it.tail), it.low }, ' ')
  if publication then write('PUBLISH', topic, publication) end
  return done(closes, false, id ~= '' and text(epoch) or nil, id ~= '' and text(number) or nil)
end

for _, nth in ipairs(torn or {}) do
  dirty = true
  answers[nth] = failure(answers[nth])
  recover(KEYS[2 * nth - 1], ARGV[3 * nth - 2])
end
for _, meta in ipairs(trims or {}) do
  -- The append that this follows is made, whatever comes of it.
  pcall(function()
    local it = load(meta)
    if it and trim(it) then save(it) end
  end)
end
for _, nth in ipairs(later or {}) do
  dirty = false
  local fine, answer = pcall(append, nth)
  if not fine then
    answer = failure(answer)
    recover(KEYS[2 * nth - 1], ARGV[3 * nth - 2])
  end
  answers[nth] = answer
end
return answers
