-- Does what channels need of Redis, to find out at once whether it allows that. KEYS: two keys, which are in different slots if
-- this is a Redis Cluster. ARGV: a topic, and what is published there. An error names the command that was refused.
for _, command in ipairs({
  { 'TIME' },
  { 'XADD', KEYS[1], 'MAXLEN', 1, '*', 'd', '' },
  { 'PEXPIRE', KEYS[1], 10000 },
  { 'HSET', KEYS[2], 'd', '' },
  { 'PEXPIRE', KEYS[2], 10000 },
  { 'PUBLISH', ARGV[1], ARGV[2] },
  { 'HSCAN', KEYS[2], 0 },
  { 'XRANGE', KEYS[1], '-', '+', 'COUNT', 1 },
}) do
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err then
    -- Before Redis 7, some errors begin with the place in the script.
    local code = string.match(answer.err, '^%u+ ') and '' or 'ERR '
    return redis.error_reply(code .. answer.err .. ' (' .. command[1] .. ')')
  end
end
return redis.status_reply('OK')
