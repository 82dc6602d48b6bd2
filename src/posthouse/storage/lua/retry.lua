-- ARGV run, tenant, seq that the caller saw, event (type agent step data), steps that are done again (key ...),
--      children that are tried again with it, parents first (run, keys of its steps that are done again, a line each ...),
--      most that may wait, longest wait (ms), memory mark (percent), what its budget is from now on (name amount ...)
-- -> retried | missing | newer | child | live | completed | moved | unlimited, status; or full, reason, seconds until another try
local id, tenant, seen = take(), take(), take_number()
local event = { take(), take(), take(), take() }
local steps, children = take_rows(1), take_rows(2)
local most, longest, mark = take_number(), take_number(), take_number()
local limits = take_rows(2)
local run = load_run(id)
if not run or run.tenant ~= tenant then return { 'missing', '' } end
if run.v > SCHEMA then return { 'newer', run.status } end
if run.root ~= id then return { 'child', '' } end
local retries = number(redis.call('HGET', KEY.run(id), 'retries'))

-- Whether its budget is what this retry wants, so that the retry may be one that has been made.
local function has_these_limits()
  for _, row in ipairs(limits) do
    if redis.call('HGET', KEY.budget(id), row[1]) ~= row[2] then return false end
  end
  return true
end

if not TERMINAL[run.status] then return { retries > 0 and has_these_limits() and 'retried' or 'live', run.status } end
if run.status == 'completed' then return { 'completed', run.status } end
if run.seq ~= seen then return { 'moved', run.status } end
-- Its time is over: Redis may have dropped its journal already, and only the sweep has not come yet.
if number(redis.call('HGET', KEY.run(id), 'ended_at')) + run.ttl <= now then return { 'missing', '' } end
-- What such a run has spent so far, nobody has counted against a limit.
if #limits > 0 and run.budget ~= '1' then return { 'unlimited', '' } end
-- It joins the queue as a new run does.
local full = no_room(most, longest, mark)
if full then return full end

-- Pending again, with its steps kept.
local function revive(one, band)
  local before = one.status
  redis.call('ZADD', KEY.due, int(now + GRACE), one.id)
  emit(one, event[1], event[2], event[3], event[4])
  redis.call('ZADD', index_of(one, 'pending'), 0, one.id)
  redis.call('HSET', KEY.run(one.id), 'status', 'pending', 'seq', int(one.seq), 'retries', int(retries + 1), 'output', '',
    'error', '', 'ended_at', '', 'wait_reason', '', 'crashes', '0', 'looks', '0', 'down_since', '', 'deadline', '0',
    'not_before', '0', 'ended_as', 'retried', 'retried_seq', int(one.seq), 'retried_at', int(now), 'asked_ms', '0', 'updated_at', int(now))
  one.status = 'pending'
  enqueue(one, band, 'retry')
  redis.call('ZREM', index_of(one, before), one.id)
  redis.call('ZREM', KEY.index(tenant, 'dead'), one.id)
  publish(one)
end

redis.call('ZADD', KEY.due, int(now + GRACE), id)
local members = redis.call('SMEMBERS', KEY.tree(id))
members[#members + 1] = id
for _, member in ipairs(members) do
  for _, key in ipairs(own_keys(member)) do redis.call('PERSIST', key) end
end
if run.budget == '1' then
  for _, row in ipairs(limits) do redis.call('HSET', KEY.budget(id), row[1], row[2]) end
  redis.call('HDEL', KEY.budget(id), 'exceeded')
  if #limits > 0 then redis.call('HDEL', KEY.budget(id), 'warned') end
end
for _, row in ipairs(steps) do set_aside(id, row[1], retries + 1) end
for _, row in ipairs(children) do
  local child = load_run(row[1])
  local parent = child and child.parent ~= id and load_run(child.parent)
  if child and child.root == id and TERMINAL[child.status] and not (parent and TERMINAL[parent.status]) then
    for key in string.gmatch(row[2], '[^\n]+') do set_aside(child.id, key, retries + 1) end
    set_aside(child.parent, child.parent_step, retries + 1)
    redis.call('HSET', KEY.waits(child.parent), child.parent_step, '0|child|' .. child.id)
    revive(child, 0)
  end
end
revive(run, run.band > 0 and run.band or 5)
return { 'retried', 'pending' }
