-- ARGV lease ms, may end leases (1 | 0), limit, readable (workflow, version ...)
-- -> lapsed, woken, queued again, purged, broken; timed out, poisoned, cancelled below another, by any script since the
--    last sweep; left (1: there is more)
local lease, may_end, limit = take_number(), take() == '1', take_number()
local readable = take_rows(2)
-- A suspect is judged by whoever started its process; one that takes that along with it has an end too.
local SUSPECT_AFTER, HOPELESS = 2, 10
local lapsed, woken, queued, purged, broken, left = 0, 0, 0, 0, 0, 0

-- Nobody swept for a while: Redis stood still or everybody slept, so owners get one lease to beat.
local state = redis.call('HMGET', KEY.sweep, 'last', 'quiet_until')
local quiet = number(state[2])
if now - number(state[1]) > lease / 2 then quiet = now + lease end
redis.call('HSET', KEY.sweep, 'last', int(now), 'quiet_until', int(quiet))

redis.call('ZREMRANGEBYSCORE', KEY.workers, '-inf', int(now - 3600000))

measure_memory()

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
    if run.dispatch == 0 then
      redis.call('HSET', KEY.run(run.id), 'updated_at', int(now))
      redis.call('ZREM', KEY.later, run.id)
    end
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

-- A suspect whose own process had not begun it yet has done nothing.
local function may_be_to_blame(run)
  return run.crashes < SUSPECT_AFTER or redis.call('HGET', KEY.run(run.id), 'isolated') == int(run.epoch)
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
      if may_be_to_blame(run) then run.crashes = run.crashes + 1 end
      if run.crashes >= HOPELESS then
        fail(run, 'poisoned')
      else
        redis.call('HSET', KEY.run(id), 'crashes', int(run.crashes))
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

-- Whoever took these on or ended them did not say so here: scripts from before there was this list, or a broken call.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEY.later, '-inf', int(now - GRACE), 'LIMIT', 0, int(limit))) do
  local run = load_run(id)
  if not run or run.dispatch > 0 or TERMINAL[run.status] then redis.call('ZREM', KEY.later, id) end
end

for _, row in ipairs(readable) do
  local held = KEY.held(row[1], row[2])
  for _, job in ipairs(redis.call('ZRANGE', held, 0, limit - 1)) do
    local run = load_run(string.match(job, '^%w+') or '')
    if not run or run.v <= SCHEMA then
      redis.call('ZADD', KEY.queue, redis.call('ZSCORE', held, job), job)
      if run and not is_parked(run) and redis.call('HGET', KEY.run(run.id), 'wait_reason') == 'version' then
        redis.call('HSET', KEY.run(run.id), 'wait_reason', '')
      end
      redis.call('ZREM', held, job)
      wake()
    end
  end
end
local CODES = { 'ended_timeout', 'ended_poisoned', 'ended_cancelled' }
local ended = redis.call('HMGET', KEY.sweep, unpack(CODES))
if ended[1] or ended[2] or ended[3] then redis.call('HDEL', KEY.sweep, unpack(CODES)) end
return { lapsed, woken, queued, purged, broken, number(ended[1]), number(ended[2]), number(ended[3]),
  #ids == limit and left < limit and 1 or 0 }
