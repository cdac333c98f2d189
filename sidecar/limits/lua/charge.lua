-- Add a cost whose hold was lost or never held here, once. KEYS: mark of the exchange, generation, then per counter its
-- name and its reading (begin.lua). ARGV: nano-dollars, the instant of its row (µs or ''), then per counter the start of
-- its window (s) and the instant it may be forgotten (s or '').
-- A counter that is counted from a later instant on gets it from the ledger: 2 says that it has to be read again. One
-- that is being read gets it once it is there (seed.lua). Of those nobody has asked for yet, one that is counted here
-- from its window's beginning begins with it; any other will be seeded from the ledger, where the cost stands.
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 86400) then return 0 end
local generation = redis.call('GET', KEYS[2])
local answer = 1
for i = 3, #KEYS, 2 do
  local counter, reading, start, forget = KEYS[i], KEYS[i + 1], ARGV[i], ARGV[i + 1]
  local since = ARGV[2] ~= '' and redis.call('HGET', reading, 'at')
  if since and tonumber(ARGV[2]) < tonumber(since) then
    answer = 2
  elseif redis.call('EXISTS', counter) == 1 then
    redis.call('INCRBY', counter, ARGV[1])
  elseif since then
    redis.call('HINCRBY', reading, 'more', ARGV[1])
  elseif generation and tonumber(start) >= tonumber(generation) then
    redis.call('SET', counter, ARGV[1])
    if forget ~= '' then redis.call('EXPIREAT', counter, forget) end
  end
end
return answer
