-- Live owners keep slots and holds. KEYS: lease set, guard, epoch (begin.lua). ARGV: now (µs or ''), lease (µs), prefix of
-- records, ids...
-- Returns the epoch ('' if there is none: nothing is seeded) and the ids it does not know.
-- The guard: `last` is when anybody renewed last. If that is over a lease ago the store was out of reach (frozen,
-- restarted, partitioned), so an expired lease proves nothing: `trust` is the instant from which it does again. `lease`
-- is for reap.lua, which may be what came last before that and is read first after it.
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
local lease = tonumber(ARGV[2])
local expiry = string.format('%.0f', now + lease)
local last = redis.call('HGET', KEYS[2], 'last')
if last and now - tonumber(last) > lease then redis.call('HSET', KEYS[2], 'trust', expiry) end
redis.call('HSET', KEYS[2], 'last', string.format('%.0f', now), 'lease', ARGV[2])
local unknown = {redis.call('GET', KEYS[3]) or ''}
for i = 4, #ARGV do
  local record = redis.call('HMGET', ARGV[3] .. ARGV[i], 'keys', 'charged', 'gone')
  if record[1] and not record[2] then
    redis.call('ZADD', KEYS[1], expiry, ARGV[i])
    for _, k in ipairs(cjson.decode(record[1]).slot) do redis.call('ZADD', k, expiry, ARGV[i]) end
  elseif not record[1] and not record[3] then
    unknown[#unknown + 1] = ARGV[i]
  end
end
return unknown
