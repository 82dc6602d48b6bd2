-- How fast a model's endpoint is asked: `whole` is the endpoint with the operator's limits, `lane` one model of it with
-- what its answers said. A minute is 20 slots of 3 s and the one at hand, so that no minute ever holds more.
-- ARGV take, whole, lane, requests a minute | 0, tokens a minute | 0, tokens, trial ms, look ms, longest ms
--   -> free | counted | limited, wait ms, slot, 1 after a refusal | 0
-- ARGV tell, whole, lane, 1 when the operator set limits | 0, slot | 0, requests more, tokens more, alive | limited | none,
--   Retry-After ms | -1, first ms, longest ms, limit and rest of requests, limit and rest of tokens (-1 unknown)
--   -> open | closed, wait ms, 1 when this call closed it | 0
local SLOTS, WIDTH, MINUTE = 21, 3000, 60000
local how, whole, lane = take(), KEY.pace(take()), KEY.pace(take())
local slot = math.floor(now / WIDTH)
local state = redis.call('HMGET', lane, 'requests', 'tokens', 'closed_until', 'refusals', 'tried', 'turn')
local learnt_requests, learnt_tokens = number(state[1]), number(state[2])
local closed_until, refusals = number(state[3]), number(state[4])

local function window(key)
  local names, rows, requests, tokens = {}, {}, 0, 0
  for i = 1, SLOTS do names[i] = 'slot' .. (i - 1) end
  for _, text in ipairs(redis.call('HMGET', key, unpack(names))) do
    local at, r, t = string.match(text or '', '^(%d+) (%-?%d+) (%-?%d+)$')
    if at and tonumber(at) > slot - SLOTS and tonumber(at) <= slot then
      rows[tonumber(at)] = { tonumber(r), tonumber(t) }
      requests, tokens = requests + tonumber(r), tokens + tonumber(t)
    end
  end
  return { rows = rows, requests = requests, tokens = tokens }
end

-- The time until so much has left the minute that there is room. What is larger than a whole minute goes into an empty one.
local function wait_for(minute, most_requests, most_tokens, cost)
  local requests, tokens, wait = minute.requests, minute.tokens, 0
  for at = slot - SLOTS + 1, slot + 1 do
    local fits = most_tokens == 0 or tokens <= 0 or tokens + cost <= most_tokens
    if fits and (most_requests == 0 or requests < most_requests) then return wait end
    local row = minute.rows[at] or { 0, 0 }
    requests, tokens, wait = requests - row[1], tokens - row[2], (at + SLOTS) * WIDTH - now
  end
  return wait
end

local function add(key, at, requests, tokens)
  local name = 'slot' .. (at % SLOTS)
  local stored, r, t = string.match(redis.call('HGET', key, name) or '', '^(%d+) (%-?%d+) (%-?%d+)$')
  if stored and tonumber(stored) > at then return end
  if not stored or tonumber(stored) < at then r, t = 0, 0 end
  redis.call('HSET', key, name, int(at) .. ' ' .. int(r + requests) .. ' ' .. int(t + tokens))
  redis.call('PEXPIRE', key, ENDPOINT_TTL)
end

if how == 'take' then
  local most_requests, most_tokens, cost = take_number(), take_number(), take_number()
  local trial, look, longest = take_number(), take_number(), take_number()
  local set, learnt = most_requests + most_tokens > 0, learnt_requests + learnt_tokens > 0
  if closed_until > now then return { 'limited', math.min(closed_until - now, longest), 0, 1 } end
  -- After a refusal one at a time finds out, until one is answered.
  if refusals > 0 and number(state[5]) + trial > now then return { 'limited', look, 0, 1 } end
  local wait, step = 0, 0
  if set then
    wait = wait_for(window(whole), most_requests, most_tokens, cost)
    step = math.max(most_requests > 0 and MINUTE / most_requests or 0, most_tokens > 0 and MINUTE * cost / most_tokens or 0)
  end
  if learnt then wait = math.max(wait, wait_for(window(lane), learnt_requests, learnt_tokens, cost)) end
  if wait > 0 then
    -- Whoever has to wait comes back one after another, as fast as there will be room.
    local turn = math.max(number(state[6]), now + wait)
    redis.call('HSET', lane, 'turn', int(math.min(turn + step, now + longest)))
    redis.call('PEXPIRE', lane, ENDPOINT_TTL)
    return { 'limited', math.ceil(math.min(turn - now, longest)), 0, 0 }
  end
  if set then add(whole, slot, 1, cost) end
  if learnt then add(lane, slot, 1, cost) end
  if refusals > 0 then redis.call('HSET', lane, 'tried', int(now)) end
  return { (set or learnt) and 'counted' or 'free', 0, slot, refusals > 0 and 1 or 0 }
end

local set, at, requests, tokens, outcome = take() == '1', take_number(), take_number(), take_number(), take()
local asked, first, longest = take_number(), take_number(), take_number()
local told = { requests = { take_number(), take_number() }, tokens = { take_number(), take_number() } }

if at > 0 and (requests ~= 0 or tokens ~= 0) then
  if set then add(whole, at, requests, tokens) end
  if learnt_requests + learnt_tokens > 0 then add(lane, at, requests, tokens) end
end
local minute = window(lane)
for name, pair in pairs(told) do
  if pair[1] > 0 then
    redis.call('HSET', lane, name, int(pair[1]))
    redis.call('PEXPIRE', lane, ENDPOINT_TTL)
    -- Others may ask with the same key: what the endpoint counts and nobody here did is theirs.
    local others = pair[2] >= 0 and pair[1] - pair[2] - minute[name] or 0
    if others > 0 then add(lane, slot, name == 'requests' and others or 0, name == 'tokens' and others or 0) end
  end
end
if outcome == 'limited' then
  local turned = closed_until <= now
  if turned then refusals = refusals + 1 end
  local wait = asked >= 0 and asked or math.min(first * 2 ^ (math.max(refusals, 1) - 1), longest)
  if turned or asked >= 0 then closed_until = math.max(closed_until, now + wait) end
  redis.call('HSET', lane, 'refusals', int(math.max(refusals, 1)), 'closed_until', int(closed_until))
  redis.call('PEXPIRE', lane, ENDPOINT_TTL)
  return { 'closed', math.ceil(math.min(math.max(closed_until - now, 0), longest)), turned and 1 or 0 }
end
if outcome == 'alive' and refusals > 0 and closed_until <= now then
  redis.call('HDEL', lane, 'refusals', 'closed_until', 'tried', 'turn')
end
return { closed_until > now and 'closed' or 'open', math.ceil(math.min(math.max(closed_until - now, 0), longest)), 0 }
