-- What the ledger says into counters. KEYS: generation, then per counter its name and its reading. ARGV: now (µs or ''),
-- number of the reading ('': none, then only counters nobody has set), then per counter its value, the instant it may
-- be forgotten (s or '') and the instant it is counted from, as begin.lua said.
-- A counter is what the ledger says of the time before that instant, and what was counted here since (`more`: before
-- the counter was there). Read again, the first part changes by the difference; of readings that cross the one begun
-- later stays.
-- The generation is the next whole second: whatever window starts from then on was counted here from its beginning.
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
redis.call('SET', KEYS[1], string.format('%.0f', math.ceil(now / 1000000)), 'NX')
for i = 2, #KEYS, 2 do
  local a = 3 + (i - 2) / 2 * 3
  local counter, reading, value, forget = KEYS[i], KEYS[i + 1], ARGV[a], ARGV[a + 1]
  local is_new = false
  if ARGV[2] == '' then
    is_new = redis.call('SET', counter, value, 'NX')
  else
    local known = redis.call('HMGET', reading, 'at', 'value', 'number', 'more')
    if known[1] == ARGV[a + 2] and tonumber(known[3] or '0') < tonumber(ARGV[2]) then
      local exists = redis.call('EXISTS', counter) == 1
      if exists and known[2] then
        redis.call('INCRBY', counter, string.format('%.0f', tonumber(value) - tonumber(known[2])))
        redis.call('HSET', reading, 'value', value, 'number', ARGV[2])
      elseif not exists and not known[2] then
        is_new = redis.call('SET', counter, string.format('%.0f', tonumber(value) + tonumber(known[4] or '0')), 'NX')
        redis.call('HSET', reading, 'value', value, 'number', ARGV[2])
      end
    end
  end
  if is_new and forget ~= '' then redis.call('EXPIREAT', counter, forget) end
end
return 1
