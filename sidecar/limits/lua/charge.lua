-- Add a cost whose hold was lost or never held here, once. KEYS: mark of the exchange, counters... ARGV: nano-dollars.
-- A counter that does not exist is left alone: it will be seeded from the ledger, where the cost stands.
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 86400) then return 0 end
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then redis.call('INCRBY', KEYS[i], ARGV[1]) end
end
return 1
