-- First on every connection. A server that was started again, or took over from another, has at best what was saved some
-- time ago: its counters would forget what was spent since, and whoever was running then would be silent owners. It is
-- taken for one that lost its memory, so that all of it is read from the ledger. Charged holds stay for a late settle.
-- KEYS: the run of the server (INFO) that counted here last, readings (begin.lua; nobody has a ledger if there were
-- none: then what was saved is the best there is), epoch, generation, lease set. ARGV: prefix of all keys.
-- Returns 1 if that was so.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
if not run then return 0 end
local last = redis.call('GET', KEYS[1])
if last == run then return 0 end
redis.call('SET', KEYS[1], run)
if not last or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local function each(letter, work)
  local pattern = string.gsub(ARGV[1], '[*?%[%]\\]', '\\%0') .. letter .. ':*'
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do work(key) end
  until cursor == '0'
end
local function forget(key) redis.call('UNLINK', key) end
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
each('b', forget)
each('s', forget)
each('x', function(key)
  if redis.call('HEXISTS', key, 'charged') == 1 or redis.call('HEXISTS', key, 'heard') == 1 then
    redis.call('HSET', key, 'lost', '1')
  else
    forget(key)
  end
end)
return 1
