-- Charge the holds of silent owners: what is held stays counted, the slots come back, and the record stays for a late
-- settle, which then corrects by the difference. KEYS: lease set. ARGV: now (µs or ''), prefix of live records.
local now = ARGV[1]
if now == '' then
  local t = redis.call('TIME')
  now = string.format('%.0f', t[1] * 1000000 + t[2])
end
local silent = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
local out = {}
for _, id in ipairs(silent) do
  redis.call('ZREM', KEYS[1], id)
  local record = redis.call('HMGET', ARGV[2] .. id, 'keys', 'hold', 'at')
  if record[1] then
    local keys = cjson.decode(record[1])
    for _, k in ipairs(keys.slot) do redis.call('ZREM', k, id) end
    out[#out + 1] = {id, record[2], record[3]}
  end
end
return out
