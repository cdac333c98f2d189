-- The row of a silent hold is durable, or ('1') taken back: it is handed out no more (reap.lua). Not so if its owner
-- settled meanwhile and nobody has taken the row back yet.
-- KEYS: silent set, record. ARGV: exchange id, '1' if taken back.
local heard = redis.call('HEXISTS', KEYS[2], 'heard') == 1
if ARGV[2] == '1' then
  if heard then redis.call('DEL', KEYS[2]) end
elseif heard then
  return 0
end
return redis.call('ZREM', KEYS[1], ARGV[1])
