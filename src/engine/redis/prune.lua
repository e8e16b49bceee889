-- Removes names from a shard of the index, unless they were registered again. KEYS: the shard. ARGV: for each the name, and the time of
-- its registration.
for at = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[at + 1] then redis.call('HDEL', KEYS[1], ARGV[at]) end
end
return redis.status_reply('OK')
