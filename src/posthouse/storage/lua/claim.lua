-- ARGV worker, claim id, lease ms, limit, highest readable v, job ('' = from the queue), readable (name:version ...)
-- -> rows: run, epoch, dispatch, seq, signals, workflow, version, input, root, tenant, journalled steps, reason,
--    queued since, started_at, looks, crashes, now, since when it has waited for the model, parent, seq of its last retry,
--    1 when it has a budget, events that are its children's, models of its own, subtask
local worker, claim, lease, limit, highest, only = take(), take(), take_number(), take_number(), take_number(), take()
local readable = {}
for _, row in ipairs(take_rows(1)) do readable[row[1]] = true end
local LOOKED_AT = 200

local function row_of(run, reason)
  local extra = redis.call('HMGET', KEY.run(run.id), 'input', 'updated_at', 'started_at', 'looks', 'down_since',
    'retried_seq', 'copied', 'models')
  return { run.id, int(run.epoch), int(run.dispatch), int(run.seq), int(run.signals), run.workflow, run.version,
    extra[1] or 'null', run.root, run.tenant, int(redis.call('HLEN', KEY.journal(run.id))), reason,
    extra[2] or '0', extra[3] or '0', extra[4] or '0', int(run.crashes), int(now), int(number(extra[5])),
    run.parent, int(number(extra[6])), run.budget, int(number(extra[7])), extra[8] or '', run.subtask }
end

local function own(run, job)
  local first = run.status == 'pending' and run.epoch == 0
  local reason = run.wake_reason
  if run.timeout > 0 and run.deadline == 0 then run.deadline = now + run.timeout end
  look_again(run, now + lease)
  run.epoch = run.epoch + 1
  run.claim = claim
  if run.status ~= 'running' then redis.call('ZADD', index_of(run, 'running'), 0, run.id) end
  redis.call('HSET', KEY.run(run.id), 'status', 'running', 'epoch', int(run.epoch), 'claim', claim, 'owner', worker,
    'lease', int(now + lease), 'wait_reason', '', 'deadline', int(run.deadline))
  redis.call('HSETNX', KEY.run(run.id), 'started_at', int(now))
  -- Its time in the queue is none that it has worked.
  if reason == 'retry' then redis.call('HSET', KEY.run(run.id), 'retried_at', int(now)) end
  if first then
    emit(run, 'run.started', '', '', '{"worker":"' .. worker .. '"}')
  else
    emit(run, 'run.resumed', '', '', '{"worker":"' .. worker .. '","reason":"' .. reason .. '"}')
  end
  local row = row_of(run, reason)
  redis.call('HSET', KEY.run(run.id), 'seq', int(run.seq), 'updated_at', int(now))
  redis.call('RPUSH', KEY.claims(claim), run.id)
  if run.status ~= 'running' then redis.call('ZREM', index_of(run, run.status), run.id) end
  drop_job(job)
  publish(run)
  return row
end

local function consider(job)
  local id, dispatch = string.match(job, '^(%w+):(%d+)$')
  local run = id and load_run(id)
  if not run or TERMINAL[run.status] or run.claim ~= '' or int(run.dispatch) ~= dispatch
    or is_parked(run) then
    drop_job(job)
    return nil
  end
  if run.v > highest or not readable[run.workflow .. ':' .. run.version] then
    -- First: should this break, the run is enqueued again, which says that it waits for nothing.
    if run.v <= SCHEMA then redis.call('HSET', KEY.run(id), 'wait_reason', 'version') end
    redis.call('SADD', KEY.all_held, KEY.held(run.workflow, run.version))
    redis.call('ZADD', KEY.held(run.workflow, run.version), redis.call('ZSCORE', KEY.queue, job) or '1', job)
    redis.call('ZREM', KEY.queue, job)
    return nil
  end
  return own(run, job)
end

local rows = {}
for _, id in ipairs(redis.call('LRANGE', KEY.claims(claim), 0, -1)) do
  local run = load_run(id)
  if run and run.claim == claim and not TERMINAL[run.status] then rows[#rows + 1] = row_of(run, run.wake_reason) end
end
if #rows > 0 then return rows end

local function waiting() return redis.call('ZCOUNT', KEY.queue, int(BAND), '+inf') end

-- How fast runs that wait to begin are taken, over the time in which some wait, for whoever is told to come back later:
-- over the last ten seconds of it or the last ten runs, whichever is more.
local function measure(before)
  if before == 0 then
    redis.call('HDEL', KEY.drained, 'queued_since')
    return
  end
  local left = waiting()
  local drained = redis.call('HMGET', KEY.drained, 'queued_since', 'queued_ms', 'queued_count')
  local since, ms, count = number(drained[1]), number(drained[2]), number(drained[3])
  if since > 0 then
    ms, count = ms + now - since, count + before - left
    if ms > 20000 and count > 20 then ms, count = ms / 2, count / 2 end
  end
  redis.call('HSET', KEY.drained, 'queued_since', int(left > 0 and now or 0), 'queued_ms', int(ms),
    'queued_count', int(count))
end

local waited = waiting()
if only ~= '' then
  rows[1] = consider(only)
else
  local looked = 0
  while #rows < limit and looked < LOOKED_AT do
    local jobs = redis.call('ZRANGE', KEY.queue, 0, limit - #rows - 1)
    if #jobs == 0 then break end
    for _, job in ipairs(jobs) do
      looked = looked + 1
      -- One broken run must not stop the fleet: it leaves the queue, and the sweep looks at it again.
      local sound, row = pcall(consider, job)
      if not sound then redis.pcall('ZREM', KEY.queue, job) end
      rows[#rows + 1] = sound and row or nil
    end
  end
  if redis.call('ZCARD', KEY.queue) > 0 then wake() end
end
if #rows > 0 then
  redis.call('PEXPIRE', KEY.claims(claim), int(lease))
  -- How many are taken lately, for whoever looks at the queue.
  local drained = redis.call('HMGET', KEY.drained, 'since', 'count')
  if now - number(drained[1]) > 10000 then
    redis.call('HSET', KEY.drained, 'since', int(now), 'count', '0', 'former_count', int(number(drained[2]) + #rows),
      'former_ms', int(drained[1] and now - number(drained[1]) or 10000))
  else
    redis.call('HINCRBY', KEY.drained, 'count', #rows)
  end
end
measure(waited)
return rows
