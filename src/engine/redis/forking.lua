-- The forks that are about to become visible, of all channels: a sorted set by when it is time to find out what became of one whose node has
-- not said so. ARGV: `note`, in how many milliseconds that is, and the fork; or `due`, when the next node is to find out, and how
-- many forks to answer at most.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local due = string.format('%.0f', now + tonumber(ARGV[2]))

if ARGV[1] == 'note' then
  redis.call('ZADD', KEYS[1], due, ARGV[3])
  return {}
end
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[3])
for _, fork in ipairs(found) do redis.call('ZADD', KEYS[1], due, fork) end
return found
