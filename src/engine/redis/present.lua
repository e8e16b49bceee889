-- Answers for each channel whether it exists. KEYS: the channels.
local present = {}
for nth, meta in ipairs(KEYS) do present[nth] = redis.call('EXISTS', meta) end
return present
