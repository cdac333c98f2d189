-- From which instant on counters are counted here: what was admitted before is in the ledger or on its way there, what
-- is admitted from then on is counted as it happens. Set once per counter; and the number of this reading of the ledger.
-- KEYS: epoch, readings, then per counter its name and its reading. ARGV: now (µs or ''), then per counter the instant
-- it may be forgotten (s or ''). Returns {epoch, number of the reading, instant (µs) per counter ('': counted here from
-- its window's beginning)...}.
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
local at = string.format('%.0f', now)
redis.call('SET', KEYS[1], at, 'NX')
local out = {redis.call('GET', KEYS[1]), redis.call('INCR', KEYS[2])}
for i = 3, #KEYS, 2 do
  local since = redis.call('HGET', KEYS[i + 1], 'at')
  if not since and redis.call('EXISTS', KEYS[i]) == 0 then
    since = at
    redis.call('HSET', KEYS[i + 1], 'at', since)
    local forget = ARGV[(i + 1) / 2]
    if forget ~= '' then redis.call('EXPIREAT', KEYS[i + 1], forget) end
  end
  out[#out + 1] = since or ''
end
return out
