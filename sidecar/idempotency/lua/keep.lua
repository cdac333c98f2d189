-- KEYS: entry, index (member "size:name", scored by its end), bytes in all.
-- ARGV: what stands there while the caller runs it, the answer, ms to keep it, its size, bytes allowed in all,
--       its name, the prefix of entries.
-- Nothing stands there where the server lost its memory, or the lease ran out: then nobody else runs it.
local found = redis.call('GET', KEYS[1])
if found and found ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local size, allowed = tonumber(ARGV[4]), tonumber(ARGV[5])

local function forget(member)
  redis.call('ZREM', KEYS[2], member)
  return redis.call('DECRBY', KEYS[3], string.match(member, '^%d+'))
end

for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)) do
  forget(member)
end
local total = tonumber(redis.call('GET', KEYS[3]) or '0')
while total + size > allowed do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not oldest then
    redis.call('DEL', KEYS[3])
    break
  end
  redis.call('DEL', ARGV[7] .. string.match(oldest, '^%d+:(.*)$'))
  total = forget(oldest)
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[4] .. ':' .. ARGV[6]) == 1 then
  redis.call('INCRBY', KEYS[3], ARGV[4])
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[3])
return 1
