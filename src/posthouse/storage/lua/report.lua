-- ARGV endpoint, token of the try, alive | failed | dropped, 1 for a probe | 0, failures that open, span ms, first ms, longest ms, look ms
-- -> closed | open, 1 when this try made it so | 0, wait ms
local id, token, how, probed = take(), take(), take(), take() == '1'
local limit, span, first, longest, look = take_number(), take_number(), take_number(), take_number(), take_number()
local key = KEY.endpoint(id)
local state = redis.call('HMGET', key, 'failures', 'since', 'opens', 'open_until', 'probe', 'probe_until', 'last')
local failures, since, opens = number(state[1]), number(state[2]), number(state[3])
local open_until, probe_until, counted = number(state[4]), number(state[6]), state[7] == token

if how == 'alive' then
  if state[1] then redis.call('DEL', key) end
  return { 'closed', opens > 0 and 1 or 0, 0 }
end

local function count()
  failures = failures + 1
  if failures == 1 then since = now end
  -- Once it was open, one failure opens it again: whoever asks then has been let through to find out.
  if opens == 0 and (failures < limit or now - since < span) then
    redis.call('HSET', key, 'failures', int(failures), 'since', int(since), 'last', token)
    return
  end
  opens, probe_until, counted = opens + 1, 0, true
  open_until = now + math.min(first * 2 ^ (opens - 1), longest)
  redis.call('HSET', key, 'failures', int(failures), 'since', int(since), 'last', token, 'opens', int(opens),
    'open_until', int(open_until), 'probe', '', 'probe_until', '0')
end

-- A try from before the opening says nothing new, however late it fails.
if how == 'failed' and (counted or open_until <= now) and (probed or opens == 0) then
  if not counted then count() end
  redis.call('PEXPIRE', key, ENDPOINT_TTL)
elseif how == 'dropped' and state[5] == token then
  redis.call('HSET', key, 'probe', '', 'probe_until', '0')
  probe_until = 0
end
if open_until == 0 then return { 'closed', 0, 0 } end
if open_until > now then return { 'open', counted and 1 or 0, open_until - now } end
return { 'open', 0, math.max(0, math.min(probe_until - now, look)) }
