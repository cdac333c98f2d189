-- Exchanges that ran while the counters were lost, settled since, their rows read from the ledger: what they count for
-- themselves goes. KEYS: lease set. ARGV: prefix of records, '1' to leave the counters (there is no ledger), ids...
for i = 3, #ARGV do
  local record = redis.call('HMGET', ARGV[1] .. ARGV[i], 'keys', 'hold', 'lost', 'charged')
  if record[1] and record[3] and not record[4] then
    if ARGV[2] == '' then
      for _, k in ipairs(cjson.decode(record[1]).bud) do
        if redis.call('EXISTS', k) == 1 then redis.call('DECRBY', k, record[2]) end
      end
    end
    redis.call('DEL', ARGV[1] .. ARGV[i])
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return 1
