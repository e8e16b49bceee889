-- Registers names in a shard of the index, before their channels are created. KEYS: the shard. ARGV: the names. Answers the time, in
-- milliseconds, until shortly after which the channels may be created: see `is_registered` in `helpers.lua`.
local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
for _, name in ipairs(ARGV) do redis.call('HSET', KEYS[1], name, now) end
return now
