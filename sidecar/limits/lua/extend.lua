-- Hold more on every budget or on none. KEYS: live record. ARGV: extra (nano-dollars). Returns 1, 0 or -1 (unknown).
local record = redis.call('HMGET', KEYS[1], 'keys', 'hold')
if not record[1] then return -1 end
local keys = cjson.decode(record[1])
local extra = tonumber(ARGV[1])
for i, k in ipairs(keys.bud) do
  if tonumber(redis.call('GET', k) or '0') + extra > tonumber(keys.max[i]) then return 0 end
end
for _, k in ipairs(keys.bud) do redis.call('INCRBY', k, ARGV[1]) end
redis.call('HSET', KEYS[1], 'hold', string.format('%.0f', tonumber(record[2]) + extra))
return 1
