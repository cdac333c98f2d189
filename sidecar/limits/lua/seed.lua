-- Set counters nobody has set yet. KEYS: generation, counters... ARGV: now (s or ''), then per counter value and expiry.
local now = ARGV[1]
if now == '' then now = redis.call('TIME')[1] end
redis.call('SET', KEYS[1], now, 'NX')
for i = 2, #KEYS do
  redis.call('SET', KEYS[i], ARGV[i * 2 - 2], 'NX')
  local last = tonumber(ARGV[i * 2 - 1])
  if last >= 0 then redis.call('EXPIREAT', KEYS[i], string.format('%.0f', last + 604800)) end
end
return 1
