-- Adds a slice of a source to a fork that is not visible yet. KEYS: its stream. ARGV: for how long the stream lives, the id that the slice follows, if
-- any, and of each append its id and its two fields. May be repeated. The stream expires by itself if its node does not go on.
local log = KEYS[1]
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
last = last and last[1] or ''
if last ~= ARGV[#ARGV - 2] then
  if last ~= ARGV[2] then return { 'lost' } end
  for at = 3, #ARGV, 3 do
    write('XADD', log, ARGV[at], 'd', ARGV[at + 1], 'm', ARGV[at + 2])
  end
end
write('PEXPIRE', log, ARGV[1])
return { 'copied' }
