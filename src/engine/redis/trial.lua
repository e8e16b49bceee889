-- Does what channels need of Redis, to find out at once whether it allows that. KEYS: two keys, which are in different slots if
-- this is a Redis Cluster. ARGV: a topic, and what is published there.
redis.call('TIME')
redis.call('XADD', KEYS[1], 'MAXLEN', 1, '*', 'd', '')
redis.call('PEXPIRE', KEYS[1], 10000)
redis.call('HSET', KEYS[2], 'd', '')
redis.call('PEXPIRE', KEYS[2], 10000)
redis.call('PUBLISH', ARGV[1], ARGV[2])
redis.call('HSCAN', KEYS[2], 0)
return #redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
