-- ARGV run, fence, told seq, step key, child, outcome of the step (JSON text without its opening brace), key of the step
--      that is its end, subtask, workflow, version, v, input, event (type agent step data), most in a tree, deepest,
--      seq of the outcome that this one takes the place of ('' = none)
-- -> spawned, seq, copied | full, reason | what ended the ownership
local id, fence, told, step, child, outcome = take(), take(), take_number(), take(), take(), take()
local end_step, subtask, workflow, version, v, input = take(), take(), take(), take(), take(), take()
local created = { take(), take(), take(), take() }
local most, deepest, former = take_number(), take_number(), take()
local run, answer = owned(id, fence, told)
if not run then return { answer, '0', '0' } end
local function spawned()
  return { 'spawned', int(run.seq), int(number(redis.call('HGET', KEY.run(id), 'copied'))) }
end
if recorded(run, step, former) then return spawned() end
if run.depth + 1 > deepest then return { 'full', 'depth', '0' } end
if redis.call('SCARD', KEY.tree(run.root)) >= most then return { 'full', 'size', '0' } end

-- What stood in this one's place before a retry: an end that was journalled, a child that lives on.
set_aside(id, end_step, redis.call('HGET', KEY.run(id), 'retries'))
local other = string.match(redis.call('HGET', KEY.waits(id), end_step) or '', '^%d+|child|(.*)$')
if other and other ~= child then
  local former_child = load_run(other)
  if former_child and not TERMINAL[former_child.status] then cancel_child(former_child) end
  redis.call('HDEL', KEY.waits(id), end_step)
  run.seq = number(redis.call('HGET', KEY.run(id), 'seq'))
end

local made = redis.call('HMGET', KEY.run(child), 'whole', 'epoch', 'status')
-- One that a broken call left half done may have been taken, or have an end, by now.
if not made[1] and number(made[2]) == 0 and not TERMINAL[made[3] or ''] then
  redis.call('ZADD', KEY.due, int(now + GRACE), child)
  redis.call('SADD', KEY.tree(run.root), child)
  local whole = { id = child, out = {}, seq = 0, epoch = 0, dispatch = 0, workflow = workflow, version = version,
    tenant = run.tenant, parent = id, root = run.root }
  local ttl, models = unpack(redis.call('HMGET', KEY.run(run.root), 'ttl', 'models'))
  redis.call('ZADD', index_of(whole), 0, child)
  redis.call('ZADD', index_of(whole, 'pending'), 0, child)
  redis.call('HSET', KEY.run(child), 'v', v, 'tenant', run.tenant, 'workflow', workflow, 'version', version,
    'status', 'pending', 'input', input, 'metadata', '{}', 'ttl', ttl or '0', 'band', '0', 'epoch', '0', 'claim', '',
    'lease', '0', 'seq', '1', 'signals', '0', 'dispatch', '0', 'root', run.root, 'parent', id, 'parent_step', end_step,
    'subtask', subtask, 'depth', int(run.depth + 1), 'budget', run.budget, 'models', models or '',
    'created_at', int(now), 'updated_at', int(now), 'timeout', '0', 'not_before', '0')
  emit(whole, created[1], created[2], created[3], created[4])
  whole.up = {}
  enqueue(whole, 0, 'spawned')
  redis.call('HSET', KEY.run(child), 'whole', '1')
  publish(whole)
end
redis.call('HSETNX', KEY.waits(id), end_step, '0|child|' .. child)
journal(run, step, outcome)
redis.call('HSET', KEY.run(id), 'crashes', '0', 'looks', '0', 'down_since', '', 'updated_at', int(now))
redis.call('HDEL', KEY.starts(id), step)
return spawned()
