-- ARGV endpoint, token of the try, probe ms, look ms  ->  closed | probe | open, wait ms
local id, token, probe_ms, look = take(), take(), take_number(), take_number()
local key = KEY.endpoint(id)
local state = redis.call('HMGET', key, 'open_until', 'probe', 'probe_until')
local open_until, probe, probe_until = number(state[1]), state[2], number(state[3])

if open_until == 0 then return { 'closed', 0 } end
if open_until > now then return { 'open', open_until - now } end
if probe ~= token then
  if probe_until > now then return { 'open', math.min(probe_until - now, look) } end
  redis.call('HSET', key, 'probe', token, 'probe_until', int(now + probe_ms))
end
redis.call('PEXPIRE', key, ENDPOINT_TTL)
return { 'probe', 0 }
