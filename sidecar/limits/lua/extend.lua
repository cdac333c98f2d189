-- Hold more on every budget or on none. KEYS: record, counters... ARGV: extra (nano-dollars), maximum of each counter.
-- Returns 1, 0 (does not fit) or -1 (not known).
local held = redis.call('HGET', KEYS[1], 'hold')
if not held then return -1 end
local extra = tonumber(ARGV[1])
for i = 2, #KEYS do
  if tonumber(redis.call('GET', KEYS[i]) or '0') + extra > tonumber(ARGV[i]) then return 0 end
end
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('INCRBY', KEYS[i], ARGV[1]) end
end
redis.call('HSET', KEYS[1], 'hold', string.format('%.0f', tonumber(held) + extra))
return 1
