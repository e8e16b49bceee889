-- Deletes a channel with all that it holds. Its name stays taken while it has forks. ARGV: topic.
local it = load(KEYS[1])
if not it then return { 'unknown' } end
if it.buried then return is_deleted(it) end
if has_forks(it.meta, text(it.tag)) then
  it.buried = true
  save_all(it)
  write('UNLINK', it.log)
else
  remove(it.meta)
  if it.tail > 0 or it.closed then remember(it, 0) end
end
write('PUBLISH', ARGV[1], table.concat({ 'deleted', text(it.tail), it.low }, ' '))
return { 'done', text(it.tail), it.low }
