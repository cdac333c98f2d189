-- Set counters nobody has set yet. KEYS: generation, counters... ARGV: now (µs or ''), then per counter its value and
-- the instant it may be forgotten (s or ''). The generation is the next whole second: whatever window starts from then
-- on was counted here from its beginning.
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
redis.call('SET', KEYS[1], string.format('%.0f', math.ceil(now / 1000000)), 'NX')
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i * 2 - 2], 'NX')
  local forget = ARGV[i * 2 - 1]
  if forget ~= '' then redis.call('EXPIREAT', KEYS[i], forget) end
end
return 1
