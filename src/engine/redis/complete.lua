-- Marks a shard of the index as one that has all names, if it is still the one in which the node began to register them. KEYS: the
-- shard. ARGV: the id under which the node began.
if redis.call('HGET', KEYS[1], '\0building') == ARGV[1] then
  redis.call('HDEL', KEYS[1], '\0building')
  redis.call('HSET', KEYS[1], '\0complete', ARGV[1])
end
return redis.status_reply('OK')
