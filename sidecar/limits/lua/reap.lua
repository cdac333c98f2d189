-- Charge the holds of silent owners: what is held stays counted, the slots come back, and the record stays for a late
-- settle, which then corrects by the difference. Of an exchange that ran while the counters were lost the hold goes: its
-- rows count, the caller's among them, once they are read from the ledger.
-- Whoever has money in it is handed out for its row until written.lua is told that there is one: an answer of ours may
-- get lost, and who got it may die; for a week. So is one whose owner settled after all (settle.lua), with a hold of ''.
-- KEYS: lease set, guard, silent set (id by the instant from which it is handed out). ARGV: now (µs or ''), prefix of
-- records, pause before it is handed out again (µs). Returns {id, hold, at, owner, keys}... , at most a hundred.
local now
if ARGV[1] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[1])
end
local function text(n) return string.format('%.0f', n) end
local guard = redis.call('HMGET', KEYS[2], 'trust', 'last', 'lease')
local is_watched = not guard[3] or now - tonumber(guard[2]) <= tonumber(guard[3])
if is_watched and now >= tonumber(guard[1] or '0') then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(now), 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[1], id)
    local record = redis.call('HMGET', ARGV[2] .. id, 'keys', 'hold', 'lost')
    if record[1] then
      local keys = cjson.decode(record[1])
      for _, k in ipairs(keys.slot) do redis.call('ZREM', k, id) end
      redis.call('HSET', ARGV[2] .. id, 'charged', '1')
      redis.call('PEXPIRE', ARGV[2] .. id, 604800000)
      if record[3] then
        for _, k in ipairs(keys.bud) do
          if redis.call('EXISTS', k) == 1 then redis.call('DECRBY', k, record[2]) end
        end
      end
      if tonumber(record[2]) > 0 then redis.call('ZADD', KEYS[3], 0, id) end
    end
  end
end
local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', text(now), 'LIMIT', 0, 100)) do
  local record = redis.call('HMGET', ARGV[2] .. id, 'keys', 'hold', 'at', 'owner', 'heard')
  if record[1] or record[5] then
    out[#out + 1] = {id, record[2] or '', record[3], record[4], record[1] or record[5]}
    redis.call('ZADD', KEYS[3], text(now + tonumber(ARGV[3])), id)
  else
    redis.call('ZREM', KEYS[3], id)
  end
end
return out
