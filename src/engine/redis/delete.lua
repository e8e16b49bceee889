-- Deletes a channel with all that it holds. Its name stays taken while it has forks. ARGV: topic. Answers also whether the name stays
-- taken, and what a node needs to release the source: see `orphan`.
local it = load(KEYS[1])
if not it then return { 'unknown' } end
if it.buried then return is_deleted(it) end
local buried = has_forks(it.meta)
if buried then
  it.buried = true
  save_all(it)
  write('UNLINK', it.log)
  -- A fork that is being made will be refused. If its node does not say so, this expires with the last pin.
  expire_with_pins(it.meta, it.meta)
else
  remove(it)
  if it.tail > 0 or it.closed then remember(it, 0) end
end
write('PUBLISH', ARGV[1], table.concat({ 'deleted', text(it.tail), it.low }, ' '))
return { 'done', text(it.tail), it.low, buried and '1' or '0', orphan[1], orphan[2] }
