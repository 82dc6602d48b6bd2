-- ARGV lease ms, may end leases (1 | 0), limit, readable (workflow, version ...)
-- -> lapsed, woken, queued again, purged, broken, left (1: there is more)
local lease, may_end, limit = take_number(), take() == '1', take_number()
local readable = take_rows(2)
-- A suspect is judged by whoever started its process; one that takes that along with it has an end too.
local HOPELESS = 10
local lapsed, woken, queued, purged, broken, left = 0, 0, 0, 0, 0, 0

-- Nobody swept for a while: Redis stood still or everybody slept, so owners get one lease to beat.
local state = redis.call('HMGET', KEY.sweep, 'last', 'quiet_until')
local quiet = number(state[2])
if now - number(state[1]) > lease / 2 then quiet = now + lease end
redis.call('HSET', KEY.sweep, 'last', int(now), 'quiet_until', int(quiet))

redis.call('ZREMRANGEBYSCORE', KEY.workers, '-inf', int(now - 3600000))

-- How full Redis is, in percent of what it may use; accept sheds by it.
local memory = redis.pcall('INFO', 'memory')
if type(memory) == 'string' then
  local most = number(string.match(memory, 'maxmemory:(%d+)'))
  local used = number(string.match(memory, 'used_memory:(%d+)'))
  redis.call('HSET', KEY.sweep, 'memory', int(most > 0 and math.floor(used * 100 / most) or 0))
end

-- Timers that rang: the outcome goes into the journal under the step's key. Their waits are removed by the caller
-- once the run is enqueued, so that a call that breaks here is made again.
local function ring(run)
  local rang, earliest, reason = {}, nil, 'model'
  local waits = redis.call('HGETALL', KEY.waits(run.id))
  for i = 1, #waits, 2 do
    local till, kind, outcome = string.match(waits[i + 1], '^(%d+)|([%a_]+)|(.*)$')
    till = number(till)
    if till > 0 and till <= now then
      rang[#rang + 1] = waits[i]
      if kind ~= 'model' and kind ~= 'rate_limit' then reason = 'timer' end
      if outcome ~= '' then journal(run, waits[i], outcome) end
      if kind == 'input' then
        local part = input_of(waits[i])
        -- A call that broke may have said so already.
        if string.sub(redis.call('HGET', KEY.inputs(run.id), part) or '', 1, 5) == 'open|' then
          emit(run, 'input.expired', '', waits[i], '{"input_id":"' .. run.id .. '-' .. part .. '"}')
          publish(run)
          close_input(run, waits[i], 'expired')
          redis.call('HSET', KEY.run(run.id), 'seq', int(run.seq))
        end
        reason = 'input'
      end
    elseif till > 0 and (not earliest or till < earliest) then
      earliest = till
    end
  end
  return rang, earliest, reason
end

-- Parked, with nothing in the queue: wakes it, or looks again when the next timer rings.
local function look_at_parked(run)
  local rang, earliest, reason = ring(run)
  if #rang > 0 then
    resolve(run, rang, reason)
    woken = woken + 1
  elseif earliest or (run.deadline > 0 and run.asking == 0) then
    look_again(run, earliest or run.deadline)
  else
    redis.call('ZREM', KEY.due, run.id)
  end
end

-- Queued: an entry that merely waits is left alone; one that is gone, or locked and not claimed, is written again.
local function look_at_queued(run)
  if run.dispatch == 0 and run.not_before > now then
    redis.call('ZADD', KEY.due, int(run.not_before), run.id)
    return
  end
  local job = run.id .. ':' .. int(run.dispatch)
  local there = redis.call('ZSCORE', KEY.queue, job) or redis.call('ZSCORE', KEY.held(run.workflow, run.version), job)
  local body = redis.call('EXISTS', 'arq:job:' .. job) == 1
  local locked = redis.call('EXISTS', 'arq:in-progress:' .. job) == 1
  if there and body and not locked then
    redis.call('HDEL', KEY.run(run.id), 'locked_since')
    look_again(run, now + GRACE)
    return
  end
  local since = number(redis.call('HGET', KEY.run(run.id), 'locked_since'))
  if there and body and (since == 0 or now - since < lease) then
    if since == 0 then redis.call('HSET', KEY.run(run.id), 'locked_since', int(now)) end
    look_again(run, now + lease)
    return
  end
  redis.call('HDEL', KEY.run(run.id), 'locked_since')
  if run.epoch == 0 and run.band > 0 then
    if run.dispatch == 0 then redis.call('HSET', KEY.run(run.id), 'updated_at', int(now)) end
    enqueue(run, run.band, 'accepted')
  else
    enqueue(run, 0, run.wake_reason)
  end
  queued = queued + 1
end

-- Ended: a root goes with its whole tree when its time is over; a child goes with its root.
local function look_at_ended(run)
  local over = number(redis.call('HGET', KEY.run(run.id), 'ended_at')) + run.ttl
  if run.root ~= run.id then
    tidy(run)
    settle(run)
    redis.call('ZREM', KEY.due, run.id)
  elseif over > now then
    -- Looked at before its time, the call that ended it broke.
    tidy(run)
    expire_tree(run)
    redis.call('ZADD', KEY.due, int(over), run.id)
  else
    purge(run)
    purged = purged + 1
  end
end

local function look_at(id)
  local run = load_run(id)
  if not run then
    -- A record that cannot be read is not one that is gone.
    if redis.call('EXISTS', KEY.run(id)) == 1 then error('unreadable') end
    redis.call('ZREM', KEY.due, id)
  elseif run.v > SCHEMA then
    redis.call('ZADD', KEY.due, int(now + GRACE), id)
  elseif TERMINAL[run.status] then
    look_at_ended(run)
  elseif overdue(run) then
    fail(run, 'timeout')
  elseif run.claim ~= '' then
    if run.lease > now then
      look_again(run, run.lease)
    elseif quiet > now then
      look_again(run, quiet)
    elseif not may_end then
      left = left + 1
    else
      lapsed = lapsed + 1
      -- Also one that nothing was heard of since its claim: what kills at once leaves no other trace.
      if run.crashes + 1 >= HOPELESS then
        fail(run, 'poisoned')
      else
        redis.call('HINCRBY', KEY.run(id), 'crashes', 1)
        dispossess(run, 'crash')
      end
    end
  elseif is_parked(run) then
    look_at_parked(run)
  else
    look_at_queued(run)
  end
end

local ids = redis.call('ZRANGEBYSCORE', KEY.due, '-inf', int(now), 'LIMIT', 0, int(limit))
for _, id in ipairs(ids) do
  if not pcall(look_at, id) then
    broken = broken + 1
    redis.pcall('ZADD', KEY.due, int(now + GRACE), id)
  end
end

for _, row in ipairs(readable) do
  local held = KEY.held(row[1], row[2])
  for _, job in ipairs(redis.call('ZRANGE', held, 0, limit - 1)) do
    local run = load_run(string.match(job, '^%w+') or '')
    if not run or run.v <= SCHEMA then
      redis.call('ZADD', KEY.queue, redis.call('ZSCORE', held, job), job)
      redis.call('ZREM', held, job)
      wake()
    end
  end
end
return { lapsed, woken, queued, purged, broken, #ids == limit and left < limit and 1 or 0 }
