-- KEYS: entry. ARGV: what stands there while the caller runs it, lease in ms.
-- A server that lost its memory learns of it again.
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
