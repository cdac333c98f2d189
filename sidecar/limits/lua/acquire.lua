-- All claims of one exchange or none. KEYS: generation, live record, lease set, then per claim its counter in the
-- order requests, tokens, slots, budgets. ARGV: exchange id, now (µs, '' = Redis TIME), lease (µs), tokens, hold,
-- minimum hold (nano-dollars < 2^53, so Lua numbers are exact), counts of the four kinds, then per claim its limit;
-- per budget its maximum, start (s) and end (s, -1 = never).
-- Returns {'ok', at, hold, limit, left, reset µs of requests, the same of tokens} | {'denied', kind, index, wait µs}
-- | {'cold', indexes...}.
local id = ARGV[1]
local now
if ARGV[2] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[2])
end
local lease, tokens, hold, minimum = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local n_req, n_tok, n_slot, n_bud = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local MINUTE = 60000000
local record = redis.call('HGET', KEYS[2], 'answer')
if record then return cjson.decode(record) end

local key, arg = 4, 11
local req0, tok0, slot0, bud0 = key, key + n_req, key + n_req + n_tok, key + n_req + n_tok + n_slot
local breq, btok, bslot, bbud = arg, arg + n_req, arg + n_req + n_tok, arg + n_req + n_tok + n_slot

local generation = redis.call('GET', KEYS[1])
local cold = {'cold'}
local wanted = hold
local worst = 0
for i = 0, n_bud - 1 do
  local max, start = tonumber(ARGV[bbud + i * 3]), tonumber(ARGV[bbud + i * 3 + 1])
  local spent = redis.call('GET', KEYS[bud0 + i])
  if not spent then
    if not generation or start < tonumber(generation) then cold[#cold + 1] = i end
    spent = 0
  end
  local left = max - tonumber(spent)
  if wanted > 0 and left < hold then hold = left end
  if wanted > 0 and left < math.max(1, minimum) and worst == 0 then worst = i + 1 end
end
if #cold > 1 then return cold end
if worst > 0 then
  local last = tonumber(ARGV[bbud + (worst - 1) * 3 + 2])
  local wait = -1
  if last >= 0 then wait = last * 1000000 - now end
  return {'denied', 'budget', worst - 1, string.format('%.0f', wait)}
end

local answer = {'ok', string.format('%.0f', now), string.format('%.0f', hold), -1, 0, '0', -1, 0, '0'}
for i = 0, n_req - 1 do
  local k, limit = KEYS[req0 + i], tonumber(ARGV[breq + i])
  redis.call('ZREMRANGEBYSCORE', k, '-inf', string.format('%.0f', now - MINUTE))
  local used = redis.call('ZCARD', k)
  if used >= limit then
    local wait = -1
    if limit > 0 then
      local oldest = redis.call('ZRANGE', k, used - limit, used - limit, 'WITHSCORES')
      wait = tonumber(oldest[2]) + MINUTE - now
    end
    return {'denied', 'requests', i, string.format('%.0f', wait)}
  end
  local left = limit - used - 1
  if answer[4] < 0 or left < answer[5] then
    local reset = MINUTE
    if used > 0 then
      local oldest = redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')
      reset = tonumber(oldest[2]) + MINUTE - now
    end
    answer[4], answer[5], answer[6] = limit, left, string.format('%.0f', reset)
  end
end
local second = math.floor(now / 1000000)
for i = 0, n_tok - 1 do
  local k, limit = KEYS[tok0 + i], tonumber(ARGV[btok + i])
  local flat = redis.call('HGETALL', k)
  local buckets, total, oldest = {}, 0, second
  for j = 1, #flat, 2 do
    local s, amount = tonumber(flat[j]), tonumber(flat[j + 1])
    if s <= second - 61 then
      redis.call('HDEL', k, flat[j])
    else
      buckets[#buckets + 1] = {s, amount}
      total = total + amount
      if s < oldest then oldest = s end
    end
  end
  local left = limit - total - tokens
  if left < 0 then
    local wait = -1
    if tokens <= limit then
      table.sort(buckets, function(a, b) return a[1] < b[1] end)
      for _, bucket in ipairs(buckets) do
        total = total - bucket[2]
        if total + tokens <= limit then
          wait = (bucket[1] + 61) * 1000000 - now
          break
        end
      end
    end
    return {'denied', 'tokens', i, string.format('%.0f', wait)}
  end
  if answer[7] < 0 or left < answer[8] then
    answer[7], answer[8], answer[9] = limit, left, string.format('%.0f', (oldest + 61) * 1000000 - now)
  end
end
for i = 0, n_slot - 1 do
  local k, limit = KEYS[slot0 + i], tonumber(ARGV[bslot + i])
  redis.call('ZREMRANGEBYSCORE', k, '-inf', string.format('%.0f', now))
  if redis.call('ZCARD', k) >= limit then
    local wait = 1000000
    if limit == 0 then wait = -1 end
    return {'denied', 'concurrency', i, string.format('%.0f', wait)}
  end
end

-- Everything fits: now, and only now, count.
local score = string.format('%.0f', now)
local expiry = string.format('%.0f', now + lease)
for i = 0, n_req - 1 do
  redis.call('ZADD', KEYS[req0 + i], score, id)
  redis.call('PEXPIRE', KEYS[req0 + i], 61000)
end
for i = 0, n_tok - 1 do
  redis.call('HINCRBY', KEYS[tok0 + i], string.format('%.0f', second), ARGV[4])
  redis.call('PEXPIRE', KEYS[tok0 + i], 62000)
end
for i = 0, n_slot - 1 do
  redis.call('ZADD', KEYS[slot0 + i], expiry, id)
  redis.call('PEXPIRE', KEYS[slot0 + i], 86400000)
end
local held = string.format('%.0f', hold)
for i = 0, n_bud - 1 do
  redis.call('INCRBY', KEYS[bud0 + i], held)
  local last = tonumber(ARGV[bbud + i * 3 + 2])
  if last >= 0 then redis.call('EXPIREAT', KEYS[bud0 + i], string.format('%.0f', last + 604800)) end
end
local keys = {req = {}, tok = {}, slot = {}, bud = {}, max = {}}
for i = 0, n_req - 1 do keys.req[i + 1] = KEYS[req0 + i] end
for i = 0, n_tok - 1 do keys.tok[i + 1] = KEYS[tok0 + i] end
for i = 0, n_slot - 1 do keys.slot[i + 1] = KEYS[slot0 + i] end
for i = 0, n_bud - 1 do
  keys.bud[i + 1] = KEYS[bud0 + i]
  keys.max[i + 1] = ARGV[bbud + i * 3]
end
redis.call('HSET', KEYS[2], 'answer', cjson.encode(answer), 'keys', cjson.encode(keys), 'hold', held, 'tokens', ARGV[4],
  'second', string.format('%.0f', second), 'at', score)
redis.call('PEXPIRE', KEYS[2], 172800000)
redis.call('ZADD', KEYS[3], expiry, id)
return answer
