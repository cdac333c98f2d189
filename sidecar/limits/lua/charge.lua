-- Add a cost whose hold was lost or never held here, once. KEYS: mark of the exchange, then per counter its name and its
-- reading (begin.lua). ARGV: nano-dollars, the instant of its row (µs or '').
-- A counter that does not exist is left alone: it will be seeded from the ledger, where the cost stands. One that is
-- counted from a later instant on gets it from the ledger too: 2 says that it has to be read again.
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 86400) then return 0 end
local answer = 1
for i = 2, #KEYS, 2 do
  local since = ARGV[2] ~= '' and redis.call('HGET', KEYS[i + 1], 'at')
  if since and tonumber(ARGV[2]) < tonumber(since) then
    answer = 2
  elseif redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('INCRBY', KEYS[i], ARGV[1])
  end
end
return answer
