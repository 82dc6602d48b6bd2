-- ARGV mend (1 | 0), highest readable v, things (what, key, member ...)
-- -> rows: number of the thing, kind of finding, key, member, what was done ('' when nothing was)
-- Looks and mends in one: what is mended has been looked at in the same moment.
local mend, highest = take() == '1', take_number()
local things = take_rows(3)
local KEPT = 300000
local found, current = {}, 0

local function find(kind, key, member, deed, act)
  local done = ''
  if mend and act then
    act()
    done = deed
  end
  found[#found + 1] = { int(current), kind, key, member, done }
end

-- The record and 'known'; or nil and 'gone', 'unreadable', or 'newer': written by a newer posthouse.
local function look_up(id)
  local run = load_run(id)
  if run and run.v <= highest then return run, 'known' end
  if redis.call('EXISTS', KEY.run(id)) == 0 then return nil, 'gone' end
  return nil, run and 'newer' or 'unreadable'
end

-- Whether this is the job that its run waits to be taken by; claim would take no other.
local function is_stale(job)
  local id = string.match(job, '^(%w+):%d+$')
  if not id then return true end
  local run, state = look_up(id)
  if not run then return state == 'gone' end
  return TERMINAL[run.status] or run.claim ~= '' or job ~= id .. ':' .. int(run.dispatch) or is_parked(run)
end

-- Somebody else's keys may be in the same database: what is not named by a run of ours is left alone.
local function ours(id) return #id == 26 and string.match(id, '^[0-7][0-9A-HJKMNP-TV-Z]+$') ~= nil end

local examine = {}

function examine.entry(key, job)
  if ours(string.match(job, '^[^:]*')) and redis.call('ZSCORE', key, job) and is_stale(job) then
    find('stale_job', key, job, 'removed', function()
      redis.call('ZREM', key, job)
      drop_job(job)
    end)
  end
end

function examine.job(key)
  local job = string.match(key, '^arq:[%a-]+:(.*)$')
  if ours(string.match(job, '^[^:]*')) and redis.call('EXISTS', key) == 1 and is_stale(job) then
    find('stale_job', key, '', 'deleted', function() redis.call('DEL', key) end)
  end
end

function examine.due(key, id)
  if not ours(id) then return end
  local _, state = look_up(id)
  if state == 'gone' and redis.call('ZSCORE', key, id) then
    find('stale_due', key, id, 'removed', function() redis.call('ZREM', key, id) end)
  end
end

function examine.index(key, id)
  if not ours(id) then return end
  local run, state = look_up(id)
  if not redis.call('ZSCORE', key, id) or (not run and state ~= 'gone') then return end
  if run and (key == index_of(run) or key == index_of(run, run.status)) then return end
  if run and run.status == 'failed' and key == KEY.index(run.tenant, 'dead') then return end
  find('stale_index', key, id, 'removed', function() redis.call('ZREM', key, id) end)
end

function examine.part(key)
  local _, state = look_up(string.match(key, '^run:(%w+):'))
  if state == 'gone' and redis.call('EXISTS', key) == 1 then
    find('orphan', key, '', 'deleted', function() redis.call('DEL', key) end)
  end
end

function examine.passing(key)
  if string.sub(key, 1, 7) == 'worker:' and redis.pcall('HEXISTS', key, 'seen_at') ~= 1 then return end
  if redis.call('PTTL', key) == -1 then
    find('lasting', key, '', 'kept for 5 more minutes', function() redis.call('PEXPIRE', key, KEPT) end)
  end
end

-- Whether somebody has to look at the run again, whatever else happens.
local function needs_due(run)
  if TERMINAL[run.status] then return run.root == run.id end
  if not is_parked(run) or (run.deadline > 0 and run.asking == 0) then return true end
  for _, wait in ipairs(redis.call('HVALS', KEY.waits(run.id))) do
    if number(string.match(wait, '^%d+')) > 0 then return true end
  end
  return false
end

-- Whether the question is there and waits for its answer.
local function is_open(run, part)
  local request = redis.call('HGET', KEY.inputs(run.id), part) or ''
  return not TERMINAL[run.status] and string.sub(request, 1, 5) == 'open|'
end

local function open_of(input)
  local id, part = string.match(input, '^(%w+)%-(%x+)$')
  if not id or not ours(id) then return nil, 'unreadable' end
  local run, state = look_up(id)
  return run, state, run and is_open(run, part)
end

function examine.input(key, input)
  local run, state, open = open_of(input)
  if not redis.call('ZSCORE', key, input) or (not run and state ~= 'gone') then return end
  if open and key == KEY.inbox(run.tenant) then return end
  find('stale_input', key, input, 'removed', function() redis.call('ZREM', key, input) end)
end

-- A schedule that its tenant does not see, or that nobody would fire.
function examine.schedule(key, id)
  local values = redis.call('HMGET', key, 'tenant', 'next')
  if not values[1] then return end
  local list, at = KEY.schedules_of(values[1]), number(values[2])
  if not redis.call('ZSCORE', list, id) then
    find('missing_schedule', list, id, 'added', function() redis.call('ZADD', list, 0, id) end)
  end
  if at > 0 and not redis.call('ZSCORE', KEY.schedules, id) then
    find('missing_schedule', KEY.schedules, id, 'added', function() redis.call('ZADD', KEY.schedules, int(at), id) end)
  end
end

function examine.scheduled(key, id)
  if not ours(id) or not redis.call('ZSCORE', key, id) then return end
  local tenant = redis.call('HGET', KEY.schedule(id), 'tenant')
  if tenant and (key == KEY.schedules or key == KEY.schedules_of(tenant)) then return end
  find('stale_schedule', key, id, 'removed', function() redis.call('ZREM', key, id) end)
end

-- The questions of a run; an ended one has none that are open.
local function examine_questions(run)
  local key, inbox, all = KEY.inputs(run.id), KEY.inbox(run.tenant), KEY.open_inputs(run.root)
  local stored = redis.call('HGETALL', key)
  for i = 1, #stored, 2 do
    local step = string.match(stored[i + 1], '^open|%d+|%d+|([^|]*)|')
    local id = run.id .. '-' .. stored[i]
    if step and TERMINAL[run.status] then
      find('leftover', key, stored[i], 'closed', function() close_input(run, step, 'closed') end)
    elseif step then
      if not redis.call('ZSCORE', inbox, id) then
        find('missing_input', inbox, id, 'added', function() redis.call('ZADD', inbox, 0, id) end)
      end
      if redis.call('SISMEMBER', all, id) == 0 then
        find('missing_input', all, id, 'added', function() redis.call('SADD', all, id); count_open(run) end)
      end
    end
  end
end

local function examine_budget(root)
  local key, sums = KEY.budget(root.id), {}
  local stored = redis.call('HGETALL', key)
  for i = 1, #stored, 2 do
    local id = string.match(stored[i], '^reserved:(%w+):')
    local holder, state = nil, nil
    if id then holder, state = look_up(id) end
    if state == 'gone' or (holder and holder.claim == '') then
      find('leftover', key, stored[i], 'spent', function() free_reservation(key, stored[i], true) end)
    end
  end
  stored = redis.call('HGETALL', key)
  for i = 1, #stored, 2 do
    local at = 0
    for amount in string.gmatch(string.find(stored[i], '^reserved:') and stored[i + 1] or '', '%d+') do
      at = at + 1
      sums[at] = (sums[at] or 0) + number(amount)
    end
  end
  for at, what in ipairs(SPENT) do
    local field, sum = 'reserved_' .. what, sums[at] or 0
    if number(redis.call('HGET', key, field)) ~= sum then
      find('miscounted', key, field, 'counted', function() redis.call('HSET', key, field, int(sum)) end)
    end
  end
end

local function examine_root(root)
  local all, tree = KEY.open_inputs(root.id), KEY.tree(root.id)
  for _, input in ipairs(redis.call('SMEMBERS', all)) do
    local run, state, open = open_of(input)
    if not open and (run or state == 'gone') then
      find('stale_input', all, input, 'removed', function() redis.call('SREM', all, input) end)
    end
  end
  if root.asking ~= redis.call('SCARD', all) then
    find('miscounted', KEY.run(root.id), 'asking', 'counted', function() count_open(root) end)
  end
  for _, id in ipairs(redis.call('SMEMBERS', tree)) do
    local _, state = look_up(id)
    if state == 'gone' then
      find('stale_tree', tree, id, 'removed', function() redis.call('SREM', tree, id) end)
    end
  end
  examine_budget(root)
end

-- Whether there is such a child still: one without its root goes, and none outlives it.
local function examine_child(run, root, state)
  local key, tree = KEY.run(run.id), KEY.tree(run.root)
  if state == 'gone' then
    find('stray', key, '', 'deleted', function() purge(run) end)
    return false
  end
  if root and redis.call('SISMEMBER', tree, run.id) == 0 then
    find('missing_tree', tree, run.id, 'added', function() redis.call('SADD', tree, run.id) end)
  end
  if root and TERMINAL[root.status] and not TERMINAL[run.status] then
    find('stray', key, '', 'cancelled', function()
      cancel_child(run)
      expire_tree(root)
    end)
    return false
  end
  return true
end

-- A child that is gone ends as failed; one that the journal does not know either is made again.
local function lose(run, step, child)
  local made = redis.call('HEXISTS', KEY.journal(run.id), (string.gsub(step, '/end$', ''))) == 1
  find('lost_child', KEY.waits(run.id), step, made and 'ended as failed' or 'made again', function()
    if made then
      journal(run, step, '"result":{"run_id":"' .. child .. '","status":"failed","output":null,"error":' ..
        PROBLEM.lost .. '}}')
    end
    resolve(run, { step }, 'child')
  end)
end

-- Ends of children that the run was not told of, or will never be.
local function examine_waits(run)
  local waits = redis.call('HGETALL', KEY.waits(run.id))
  for i = 1, #waits, 2 do
    local id = string.match(waits[i + 1], '^%d+|child|(.*)$')
    local child, state = nil, nil
    if id then child, state = look_up(id) end
    if child and TERMINAL[child.status] then
      find('missed_end', KEY.waits(run.id), waits[i], 'told', function() settle(child) end)
    elseif state == 'gone' and is_parked(run) then
      -- A run that is not parked looks at its waits itself.
      lose(run, waits[i], id)
    end
  end
end

-- `lives`: whether its root does, with which its keys go.
local function examine_keys(run, lives)
  if TERMINAL[run.status] then
    local waits, starts = KEY.waits(run.id), KEY.starts(run.id)
    if redis.call('EXISTS', waits) == 1 then
      find('leftover', waits, '', 'deleted', function() redis.call('DEL', waits) end)
    end
    -- Effects in doubt stay for a retry.
    for _, field in ipairs(redis.call('HKEYS', starts)) do
      if string.sub(field, 1, 7) ~= 'intent:' then
        find('leftover', starts, field, 'deleted', function() redis.call('HDEL', starts, field) end)
      end
    end
  end
  for _, key in ipairs(own_keys(run.id)) do
    local left = redis.call('PTTL', key)
    if lives and left >= 0 then
      find('expiring', key, '', 'kept', function() redis.call('PERSIST', key) end)
    elseif not lives and left == -1 and key ~= KEY.run(run.id) and key ~= KEY.waits(run.id) and key ~= KEY.starts(run.id) then
      find('lasting', key, '', 'kept for as long as its run', function() redis.call('PEXPIRE', key, int(run.ttl + 60000)) end)
    end
  end
end

function examine.record(key, id)
  local run, state = look_up(id)
  if state == 'unreadable' then find('unreadable', key, '', '', nil) end
  if not run then return end
  if needs_due(run) and not redis.call('ZSCORE', KEY.due, id) then
    find('missing_due', KEY.due, id, 'due now', function() redis.call('ZADD', KEY.due, int(now), id) end)
  end
  local root, root_state = run, state
  if run.root ~= id then root, root_state = look_up(run.root) end
  if run.root ~= id and not examine_child(run, root, root_state) then return end
  for _, index in ipairs({ index_of(run), index_of(run, run.status) }) do
    if not redis.call('ZSCORE', index, id) then
      find('missing_index', index, id, 'added', function() redis.call('ZADD', index, 0, id) end)
    end
  end
  examine_questions(run)
  if not TERMINAL[run.status] then examine_waits(run) end
  if run.root == id then examine_root(run) end
  if root then examine_keys(run, not TERMINAL[root.status]) end
end

for i, row in ipairs(things) do
  current = i
  if not pcall(examine[row[1]], row[2], row[3]) then find('unreadable', row[2], row[3], '', nil) end
end
return found
