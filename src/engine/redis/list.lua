-- Reads a page of a shard of the index. KEYS: the shard. ARGV: the cursor, and about how many names to read. Answers the time in
-- milliseconds, the id of the shard if it has all names, the next cursor, and names with the times when they were registered.
local clock = redis.call('TIME')
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local now = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000))
return { now, redis.call('HGET', KEYS[1], '\0complete') or '', page[1], page[2] }
