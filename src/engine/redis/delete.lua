-- Deletes a channel with all that it holds. ARGV: topic.
local it = load()
if not it then return { 'unknown' } end
redis.call('UNLINK', meta, log)
redis.call('PUBLISH', ARGV[1], table.concat({ 'deleted', text(it.tail), it.low }, ' '))
return { 'deleted', text(it.tail), it.low }
