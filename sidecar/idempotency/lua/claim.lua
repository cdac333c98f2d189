-- KEYS: entry. ARGV: what stands there while it runs, lease in ms. Nil: the caller's to run; else what stands there.
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
