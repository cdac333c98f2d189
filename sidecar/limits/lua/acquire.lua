-- All claims of one exchange or none.
-- KEYS: generation, lease set, guard (see renew.lua), then per claim its counter in the order requests, tokens, slots,
-- budgets; last the record of the exchange.
-- ARGV: exchange id, now (µs, '' = Redis TIME), lease (µs), tokens, hold, minimum hold, owner, when it was admitted
-- by a server that lost it (µs; it is counted again without judging; else ''), counts of the four kinds, from and until when the claims hold (µs or ''), the keys as JSON, then per claim
-- its limit; per budget its maximum, start (s), end (s, -1 = never) and the instant its counter may be forgotten.
-- Money and instants are below 2^53, so Lua numbers are exact; what is stored is written as strings.
-- Returns 'ok at hold limit left reset limit left reset' (requests, tokens; limit -1: none) | 'denied what index wait'
-- | 'cold index...' | 'stale now' | 'gone'; instants in µs.
local id = ARGV[1]
local record = KEYS[#KEYS]
local known = redis.call('HMGET', record, 'answer', 'gone')
if known[2] then return 'gone' end
if known[1] then return known[1] end

local now
if ARGV[2] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[2])
end
local function text(n) return string.format('%.0f', n) end
local forced = ARGV[8] ~= ''
local admitted = forced and tonumber(ARGV[8]) or now
if ARGV[13] ~= '' and admitted < tonumber(ARGV[13]) or ARGV[14] ~= '' and admitted >= tonumber(ARGV[14]) then
  return 'stale ' .. text(now)
end
local lease, tokens, hold, minimum = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local n_req, n_tok, n_slot, n_bud = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local tok0, slot0, bud0 = 4 + n_req, 4 + n_req + n_tok, 4 + n_req + n_tok + n_slot
local MINUTE = 60000000
local NEVER = math.huge

-- Of several full windows the one that takes longest is told, so that waiting that long is enough.
local denied, longest = nil, -1
local function deny(what, index, wait)
  if wait > longest then
    longest = wait
    denied = 'denied ' .. what .. ' ' .. index .. ' ' .. (wait == NEVER and '-1' or text(wait))
  end
end

local generation = n_bud > 0 and redis.call('GET', KEYS[1])
local cold = ''
local wanted, least = hold, math.max(1, minimum)
for i = 0, n_bud - 1 do
  local a = 16 + n_req + n_tok + n_slot + i * 4
  local max = tonumber(ARGV[a])
  local spent = redis.call('GET', KEYS[bud0 + i])
  if not spent then
    if not generation or tonumber(ARGV[a + 1]) < tonumber(generation) then cold = cold .. ' ' .. i end
    spent = 0
  end
  local left = max - tonumber(spent)
  if wanted > 0 then -- what costs nothing passes, whatever was spent
    if left < hold then hold = left end
    if left < least then
      local last = tonumber(ARGV[a + 2])
      deny('budget', i, (last < 0 or max < least) and NEVER or last * 1000000 - now)
    end
  end
end
if cold ~= '' then return 'cold' .. cold end

local req_limit, req_left, req_reset = -1, 0, 0
for i = 0, n_req - 1 do
  local k, limit = KEYS[4 + i], tonumber(ARGV[16 + i])
  redis.call('ZREMRANGEBYSCORE', k, '-inf', text(now - MINUTE))
  local used = redis.call('ZCARD', k)
  local left = limit - used - 1
  if left < 0 and redis.call('ZREMRANGEBYSCORE', k, '(' .. text(now + MINUTE), '+inf') > 0 then
    used = redis.call('ZCARD', k) -- the clock was set back: these would count until it is there again
    left = limit - used - 1
  end
  if left < 0 then
    if limit <= 0 then
      deny('requests', i, NEVER)
    else
      deny('requests', i, tonumber(redis.call('ZRANGE', k, used - limit, used - limit, 'WITHSCORES')[2]) + MINUTE - now)
    end
  elseif req_limit < 0 or left < req_left then
    req_limit, req_left, req_reset = limit, left, MINUTE
    if used > 0 then req_reset = tonumber(redis.call('ZRANGE', k, 0, 0, 'WITHSCORES')[2]) + MINUTE - now end
  end
end

-- Tokens are kept in buckets of one second; a bucket counts until its last moment is a minute old.
local second = math.floor(now / 1000000)
local tok_limit, tok_left, tok_reset = -1, 0, 0
for i = 0, n_tok - 1 do
  local k, limit = KEYS[tok0 + i], tonumber(ARGV[16 + n_req + i])
  local flat = redis.call('HGETALL', k)
  local buckets, total, oldest = {}, 0, second
  for j = 1, #flat, 2 do
    local s, amount = tonumber(flat[j]), tonumber(flat[j + 1])
    if s <= second - 61 or s > second + 61 then -- later ones: the clock was set back
      redis.call('HDEL', k, flat[j])
    else
      buckets[#buckets + 1] = {s, amount}
      total = total + amount
      if s < oldest then oldest = s end
    end
  end
  local left = limit - total - tokens
  if left < 0 then
    local wait = NEVER
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
    deny('tokens', i, wait)
  elseif tok_limit < 0 or left < tok_left then
    tok_limit, tok_left, tok_reset = limit, left, (oldest + 61) * 1000000 - now
  end
end

if n_slot > 0 then
  -- Expired leases free their slots, unless nobody could have renewed them (see renew.lua).
  local guard = redis.call('HMGET', KEYS[3], 'last', 'trust')
  local trusted = not guard[1] or (now - tonumber(guard[1]) <= lease and now >= tonumber(guard[2] or '0'))
  for i = 0, n_slot - 1 do
    local k, limit = KEYS[slot0 + i], tonumber(ARGV[16 + n_req + n_tok + i])
    if trusted then redis.call('ZREMRANGEBYSCORE', k, '-inf', text(now)) end
    if redis.call('ZCARD', k) >= limit then deny('concurrency', i, limit <= 0 and NEVER or 1000000) end
  end
end
if forced then
  hold = wanted
elseif denied then
  return denied
end

-- Everything fits: now, and only now, count.
local score, expiry, held = text(admitted), text(now + lease), text(hold)
local began = text(math.floor(admitted / 1000000))
for i = 0, n_req - 1 do
  redis.call('ZADD', KEYS[4 + i], score, id)
  redis.call('PEXPIRE', KEYS[4 + i], 61000)
end
for i = 0, n_tok - 1 do
  redis.call('HINCRBY', KEYS[tok0 + i], began, ARGV[4])
  redis.call('PEXPIRE', KEYS[tok0 + i], 62000)
end
for i = 0, n_slot - 1 do
  redis.call('ZADD', KEYS[slot0 + i], expiry, id)
  redis.call('PEXPIRE', KEYS[slot0 + i], 86400000)
end
for i = 0, n_bud - 1 do
  redis.call('INCRBY', KEYS[bud0 + i], held)
  local forget = ARGV[16 + n_req + n_tok + n_slot + i * 4 + 3]
  if forget ~= '' then redis.call('EXPIREAT', KEYS[bud0 + i], forget) end
end
local answer = 'ok ' .. score .. ' ' .. held .. ' ' .. text(req_limit) .. ' ' .. text(req_left) .. ' ' .. text(req_reset)
  .. ' ' .. text(tok_limit) .. ' ' .. text(tok_left) .. ' ' .. text(tok_reset)
redis.call('HSET', record, 'answer', answer, 'at', score, 'hold', held, 'tokens', ARGV[4], 'owner', ARGV[7],
  'keys', ARGV[15])
if forced then redis.call('HSET', record, 'lost', '1') end
redis.call('PEXPIRE', record, 172800000)
redis.call('ZADD', KEYS[2], expiry, id)
return answer
