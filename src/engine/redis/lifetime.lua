-- Idle lifetimes. Lua counts exactly up to 2^53. So the expiry of the keys is capped at 2^52 milliseconds, some 140,000 years, and
-- if a lifetime is longer, the field `ttl` has all its digits.
local MOST = 4503599627370496

-- The idle milliseconds of a channel in all their digits, or an empty string.
local function idle_of(it)
  if not it.ttl then return '' end
  return it.ttl == MOST and redis.call('HGET', it.meta, 'ttl') or text(it.ttl)
end

-- Sets the idle milliseconds, which the caller saves.
local function set_idle(it, digits)
  if digits == '' then return end
  it.ttl = math.min(tonumber(digits), MOST)
  if it.ttl == MOST then write('HSET', it.meta, 'ttl', digits) end
end
