-- Shared by every script, after prelude.lua: what ends a wait, a question, a run, a tree.

-- Journals what no worker did; a step that has an outcome keeps it.
local function journal(run, step, outcome)
  redis.call('HSETNX', KEY.journal(run.id), step, '{"seq":' .. int(run.seq) .. ',"epoch":' .. int(run.epoch) ..
    ',"time":' .. int(now) .. ',"ordinal":' .. int(redis.call('HLEN', KEY.journal(run.id))) .. ',' .. outcome)
end

-- Keeps an outcome that is no longer that of its step, under the number of the retry that came before.
local function set_aside(id, step, retries)
  local outcome = redis.call('HGET', KEY.journal(id), step)
  if not outcome then return end
  -- What a person gave with it was given for then: what is given anew counts too.
  redis.call('HDEL', KEY.budget(redis.call('HGET', KEY.run(id), 'root') or id), 'extended:' .. id .. ':' .. step)
  redis.call('HSET', KEY.archive(id), int(number(retries)) .. '/' .. step, outcome)
  redis.call('HDEL', KEY.journal(id), step)
end

-- Whether a step has an outcome that stays. One with the former's seq is set aside: its work is done anew.
local function recorded(run, step, former)
  local outcome = redis.call('HGET', KEY.journal(run.id), step)
  if not outcome then return false end
  local start = '{"seq":' .. former .. ','
  if former == '' or string.sub(outcome, 1, #start) ~= start then return true end
  -- With it goes what was done under it before the retry.
  local values = redis.call('HMGET', KEY.run(run.id), 'retries', 'retried_seq')
  for _, under in ipairs(redis.call('HKEYS', KEY.journal(run.id))) do
    if string.sub(under, 1, #step + 1) == step .. '/' then
      local seq = string.match(redis.call('HGET', KEY.journal(run.id), under) or '', '^{"seq":(%d+),')
      if seq and number(seq) < number(values[2]) then set_aside(run.id, under, values[1]) end
    end
  end
  set_aside(run.id, step, values[1])
  return false
end

-- Waits have ended: their run goes on if it is parked; if not, it may not park before it has looked.
local function resolve(run, steps, reason)
  redis.call('HINCRBY', KEY.run(run.id), 'signals', #steps)
  if is_parked(run) then
    if run.status ~= 'running' then
      redis.call('ZADD', index_of(run, 'running'), 0, run.id)
      redis.call('HSET', KEY.run(run.id), 'status', 'running', 'wait_reason', '')
      redis.call('ZREM', index_of(run, run.status), run.id)
      run.status = 'running'
    end
    redis.call('HSET', KEY.run(run.id), 'updated_at', int(now))
    enqueue(run, 0, reason)
  end
  -- Last: a call that broke before is made again as a whole.
  redis.call('HDEL', KEY.waits(run.id), unpack(steps))
end

-- Input requests: `<state>|<created>|<expires, 0 for never>|<step>|<JSON>`, by what follows the run in their id.
local function input_of(step) return string.sub(redis.sha1hex(step), 1, 16) end

-- How many questions of a tree are open; the time that people take is not the run's.
local function count_open(run)
  local open = redis.call('SCARD', KEY.open_inputs(run.root))
  local root = run.root == run.id and run or load_run(run.root)
  if not root or root.asking == open then return end
  if root.asking == 0 then
    redis.call('HSET', KEY.run(root.id), 'asking', int(open), 'asked_since', int(now))
  elseif open > 0 then
    redis.call('HSET', KEY.run(root.id), 'asking', int(open))
  else
    local waited = math.max(0, now - root.asked_since)
    if root.deadline > 0 then
      root.deadline = root.deadline + waited
      redis.call('HSET', KEY.run(root.id), 'deadline', int(root.deadline))
      if not TERMINAL[root.status] then redis.call('ZADD', KEY.due, 'LT', int(root.deadline), root.id) end
    end
    redis.call('HINCRBY', KEY.run(root.id), 'asked_ms', int(waited))
    redis.call('HSET', KEY.run(root.id), 'asking', '0')
  end
  root.asking = open
end

local function open_input(run, step, till, request)
  local id = run.id .. '-' .. input_of(step)
  -- What was answered before a retry is no answer to this.
  redis.call('HDEL', KEY.inputs(run.id), input_of(step) .. ':answer')
  redis.call('HSET', KEY.inputs(run.id), input_of(step),
    'open|' .. int(now) .. '|' .. int(till) .. '|' .. step .. '|' .. request)
  redis.call('ZADD', KEY.inbox(run.tenant), 0, id)
  redis.call('SADD', KEY.open_inputs(run.root), id)
  count_open(run)
end

local function close_input(run, step, state)
  local id = run.id .. '-' .. input_of(step)
  redis.call('ZREM', KEY.inbox(run.tenant), id)
  redis.call('SREM', KEY.open_inputs(run.root), id)
  count_open(run)
  local request = redis.call('HGET', KEY.inputs(run.id), input_of(step))
  if request then
    redis.call('HSET', KEY.inputs(run.id), input_of(step), (string.gsub(request, '^%a+', state, 1)))
  end
end

local BLOB = 65536

-- Tells a parent what has become of its child.
local function settle(child)
  if child.parent == '' or child.orphan then return end
  local parent = load_run(child.parent)
  if not parent or TERMINAL[parent.status] then return end
  -- It may wait for another child in this one's place, or for none.
  local wait = redis.call('HGET', KEY.waits(parent.id), child.parent_step)
  if not wait or string.match(wait, '^%d+|child|(.*)$') ~= child.id then return end
  local ended = redis.call('HMGET', KEY.run(child.id), 'status', 'output', 'error')
  local function text(value) return value and value ~= '' and value or 'null' end
  local result = '{"run_id":"' .. child.id .. '","status":"' .. ended[1] .. '","output":' .. text(ended[2]) ..
    ',"error":' .. text(ended[3]) .. '}'
  if #result > BLOB then
    local digest = redis.sha1hex(result)
    redis.call('SADD', KEY.blobs(parent.id), digest)
    redis.call('SET', KEY.blob(parent.id, digest), result)
    journal(parent, child.parent_step, '"blob":"' .. digest .. '"}')
  else
    journal(parent, child.parent_step, '"result":' .. result .. '}')
  end
  resolve(parent, { child.parent_step }, 'child')
end

-- Tells the owner to drop what it does for a run that is no longer its own.
local function dismiss(owner, id, fence)
  if owner ~= '' then redis.call('PUBLISH', KEY.lost(owner), id .. ' ' .. fence) end
end

-- An effect that was begun and not committed may or may not have happened: nobody will find out by doing it again.
-- What has been announced already, with its `/doubt` among the starts, is not announced again.
local function in_doubt(run)
  local events, starts = {}, redis.call('HGETALL', KEY.starts(run.id))
  local announced = {}
  for i = 1, #starts, 2 do announced[starts[i]] = true end
  for i = 1, #starts, 2 do
    local step = string.match(starts[i], '^intent:(.*)$')
    local agent, data = string.match(starts[i + 1], '^%d+|([^|]*)|(.*)$')
    if step and data and not announced[step .. '/doubt']
      and redis.call('HEXISTS', KEY.journal(run.id), step) == 0 then
      events[#events + 1] = { 'tool.in_doubt', agent, step, data }
    end
  end
  return events
end

local conclude

-- Counts an end that no worker and no API counts, for the next sweep to tell of; no end is worth breaking for that.
local function count_end(code) redis.pcall('HINCRBY', KEY.sweep, 'ended_' .. code, 1) end

-- Ends a child with its parent, which wants to hear nothing of it.
local function cancel_child(child)
  child.orphan = true
  local owner, fence = child.owner, int(child.epoch) .. ':' .. child.claim
  local events = in_doubt(child)
  events[#events + 1] = { 'run.cancelled', '', '', '{}' }
  conclude(child, 'fenced', 'cancelled', events, '', '')
  dismiss(owner, child.id, fence)
  count_end('cancelled')
end

-- What no wait led to: calls that broke can have left a child, or a question.
local function end_tree(root)
  for _, id in ipairs(redis.call('SMEMBERS', KEY.tree(root.id))) do
    if not TERMINAL[redis.call('HGET', KEY.run(id), 'status') or 'completed'] then
      local child = load_run(id)
      if child then cancel_child(child) end
    end
  end
  for _, input in ipairs(redis.call('SMEMBERS', KEY.open_inputs(root.id))) do
    local id, part = string.match(input, '^(%w+)%-(%x+)$')
    local step = string.match(redis.call('HGET', KEY.inputs(id), part) or '', '^%a+|%d+|%d+|([^|]*)|')
    local asker = step and load_run(id)
    if asker then close_input(asker, step, 'closed') end
  end
end

-- What a run still waited for ends with it: its questions, and the children that live.
local function end_waits(run)
  local waits = redis.call('HGETALL', KEY.waits(run.id))
  for i = 1, #waits, 2 do
    local kind, rest = string.match(waits[i + 1], '^%d+|([%a_]+)|(.*)$')
    if kind == 'input' then close_input(run, waits[i], 'closed') end
    local child = kind == 'child' and load_run(rest)
    if child and not TERMINAL[child.status] then cancel_child(child) end
  end
  if run.root == run.id then end_tree(run) end
  -- What the children said went into the root's log.
  if run.root == run.id then run.seq = number(redis.call('HGET', KEY.run(run.id), 'seq')) end
end

local function expire_tree(run)
  local members = redis.call('SMEMBERS', KEY.tree(run.id))
  members[#members + 1] = run.id
  for _, member in ipairs(members) do
    for _, key in ipairs(own_keys(member)) do
      -- The records stay for the sweep, which alone knows the index entries that go with them.
      if key ~= KEY.run(member) then redis.call('PEXPIRE', key, int(run.ttl + 60000)) end
    end
  end
end

-- What an ended run needs no more.
local function tidy(run)
  drop_dispatch(run)
  if run.not_before > 0 then redis.call('ZREM', KEY.later, run.id) end
  redis.call('DEL', KEY.waits(run.id))
  -- Effects that were begun stay in doubt: a retry must not make them again without a word.
  for _, field in ipairs(redis.call('HKEYS', KEY.starts(run.id))) do
    if string.sub(field, 1, 7) ~= 'intent:' then redis.call('HDEL', KEY.starts(run.id), field) end
  end
end

-- Ends a run for good; `as` is what its last owner is told when it comes again.
function conclude(run, as, status, events, output, problem)
  redis.call('ZADD', KEY.due, int(now + math.min(run.ttl, GRACE)), run.id)
  if run.root == run.id then spend_reservations(run, true) end
  end_waits(run)
  emit_rows(run, events)
  -- Before it has ended: a call that breaks in between is made again, and finds what it has said.
  publish(run)
  end_ownership(run, as, status, 'output', output, 'error', problem, 'ended_at', int(now), 'wait_reason', '')
  tidy(run)
  if run.root == run.id then expire_tree(run) end
  settle(run)
  if run.root ~= run.id then
    redis.call('ZREM', KEY.due, run.id)
  else
    redis.call('ZADD', KEY.due, int(now + run.ttl), run.id)
  end
end

-- What the scripts themselves say of a run that they end; errors.py has the same.
local PROBLEM = {
  timeout = '{"code":"timeout","message":"The run took longer than its timeout.","retryable":true}',
  poisoned = '{"code":"poisoned","message":"The run ended every process that worked on it.","retryable":false}',
  lost = '{"code":"lost","message":"The run that was to give this result is gone.","retryable":false}',
}

-- `as` is what its owner is told when it was the owner who said so.
local function fail(run, code, as)
  local owner, fence = run.owner, int(run.epoch) .. ':' .. run.claim
  if code == 'poisoned' then redis.call('ZADD', KEY.index(run.tenant, 'dead'), 0, run.id) end
  local events = in_doubt(run)
  events[#events + 1] = { 'run.failed', '', '', PROBLEM[code] }
  conclude(run, as or 'fenced', 'failed', events, '', PROBLEM[code])
  dismiss(owner, run.id, fence)
  count_end(code)
end

local function overdue(run)
  return run.deadline > 0 and run.deadline <= now and run.asking == 0
end

-- Removes a whole tree; the root's record and its place in `due` go last, so that it can be done again.
local function purge(root)
  local members = redis.call('SMEMBERS', KEY.tree(root.id))
  members[#members + 1] = root.id
  for _, id in ipairs(members) do
    local run = load_run(id)
    local keys = own_keys(id)
    if run then
      drop_dispatch(run)
      if run.not_before > 0 then redis.call('ZREM', KEY.later, id) end
      redis.call('ZREM', index_of(run), id)
      redis.call('ZREM', index_of(run, run.status), id)
      redis.call('ZREM', KEY.index(run.tenant, 'dead'), id)
      for _, input in ipairs(redis.call('HKEYS', KEY.inputs(id))) do
        redis.call('ZREM', KEY.inbox(run.tenant), id .. '-' .. input)
      end
    end
    for i = #keys, 1, -1 do redis.call('DEL', keys[i]) end
    redis.call('ZREM', KEY.due, id)
  end
end
