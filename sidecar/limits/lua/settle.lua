-- Reservation to reality, once: the record of the exchange is the proof that it has not been done.
-- KEYS: record, lease set, silent set (reap.lua). ARGV: exchange id, tokens ('' keeps), cost ('' keeps), now (µs or ''),
-- '1' to cancel. Returns 1 done, 2 done after the hold had been charged as a silent owner's (also to whoever asks again
-- before the row of that is taken back), 0 not known. A cancel of something not known leaves a mark, so that an
-- acquisition still on its way finds it and takes nothing.
-- 3: the exchange ran while the counters were lost. Its slots are free and its cost is held, until its rows have been
-- read from the ledger and retire.lua is told so.
local record = redis.call('HMGET', KEYS[1], 'keys', 'hold', 'tokens', 'at', 'charged', 'lost', 'heard', 'owner')
if not record[1] then
  if record[7] then return 2 end
  if ARGV[5] == '1' then
    redis.call('HSET', KEYS[1], 'gone', '1')
    redis.call('EXPIRE', KEYS[1], 3600)
  end
  return 0
end
local keys = cjson.decode(record[1])
local stays = record[6] and not record[5] and ARGV[5] ~= '1'
if not stays then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
end
for _, k in ipairs(keys.slot) do redis.call('ZREM', k, ARGV[1]) end
if ARGV[5] == '1' then
  for _, k in ipairs(keys.req) do redis.call('ZREM', k, ARGV[1]) end
end
if ARGV[2] ~= '' and ARGV[2] ~= record[3] then
  local difference = tonumber(ARGV[2]) - tonumber(record[3])
  local reserved_in = string.format('%.0f', math.floor(tonumber(record[4]) / 1000000))
  for _, k in ipairs(keys.tok) do
    if difference > 0 then
      local second
      if ARGV[4] == '' then
        second = redis.call('TIME')[1]
      else
        second = string.format('%.0f', math.floor(tonumber(ARGV[4]) / 1000000))
      end
      redis.call('HINCRBY', k, second, string.format('%.0f', difference))
      redis.call('PEXPIRE', k, 62000)
    elseif redis.call('HEXISTS', k, reserved_in) == 1 then
      redis.call('HINCRBY', k, reserved_in, string.format('%.0f', difference))
    end
  end
end
if record[5] then
  redis.call('HSET', KEYS[1], 'heard', record[1], 'at', record[4], 'owner', record[8])
  redis.call('PEXPIRE', KEYS[1], 604800000)
  if tonumber(record[2]) > 0 then redis.call('ZADD', KEYS[3], 0, ARGV[1]) end
end
if record[6] and record[5] then return 2 end
if ARGV[3] ~= '' and ARGV[3] ~= record[2] then
  -- Both are below 2^53, so the difference is exact.
  local difference = string.format('%.0f', tonumber(ARGV[3]) - tonumber(record[2]))
  for _, k in ipairs(keys.bud) do
    if redis.call('EXISTS', k) == 1 then redis.call('INCRBY', k, difference) end
  end
end
if stays then
  keys.slot = {}
  redis.call('HSET', KEYS[1], 'keys', cjson.encode(keys))
  if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'hold', ARGV[3]) end
  if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'tokens', ARGV[2]) end
  return 3
end
return record[5] and 2 or 1
