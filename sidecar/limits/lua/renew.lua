-- Live owners keep slots and holds. KEYS: lease set. ARGV: now (µs or ''), lease (µs), prefix of live records, ids...
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
local expiry = string.format('%.0f', now + tonumber(ARGV[2]))
for i = 4, #ARGV do
  local keys = redis.call('HGET', ARGV[3] .. ARGV[i], 'keys')
  if keys then
    redis.call('ZADD', KEYS[1], expiry, ARGV[i])
    for _, k in ipairs(cjson.decode(keys).slot) do redis.call('ZADD', k, expiry, ARGV[i]) end
  end
end
return 1
