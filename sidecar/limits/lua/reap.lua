-- Charge the holds of silent owners: what is held stays counted, the slots come back, and the record stays for a late
-- settle, which then corrects by the difference. Of an exchange that ran while the counters were lost the hold goes: its
-- rows count, the caller's among them, once they are read from the ledger. KEYS: lease set, guard. ARGV: now (µs or ''), prefix of records.
-- Returns {id, hold, at, owner, keys}... , each to one caller only.
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
if now < tonumber(redis.call('HGET', KEYS[2], 'trust') or '0') then return {} end
local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], id)
  local record = redis.call('HMGET', ARGV[2] .. id, 'keys', 'hold', 'at', 'owner', 'lost')
  if record[1] then
    for _, k in ipairs(cjson.decode(record[1]).slot) do redis.call('ZREM', k, id) end
    redis.call('HSET', ARGV[2] .. id, 'charged', '1')
    if record[5] then
      for _, k in ipairs(cjson.decode(record[1]).bud) do
        if redis.call('EXISTS', k) == 1 then redis.call('DECRBY', k, record[2]) end
      end
    end
    out[#out + 1] = {id, record[2], record[3], record[4], record[1]}
  end
end
return out
