-- Shared by every script: key names (keys.py has the same), numbers, events, the queue, ownership.
-- Order of writes, because a failed call is not rolled back: `due` first, so that the sweep finds
-- whatever is left half done; then the record; deletions last.

local function int(number) return string.format('%.0f', number) end
local function number(text) return tonumber(text or '0') or 0 end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local KEY = { due = 'due', queue = 'arq:queue', wake = 'queue:wake', counter = 'queue:counter', sweep = 'sweep',
  drained = 'queue:drained', workers = 'workers', all_held = 'held' }
function KEY.run(id) return 'run:' .. id end
function KEY.journal(id) return 'run:' .. id .. ':journal' end
function KEY.starts(id) return 'run:' .. id .. ':starts' end
function KEY.events(id) return 'run:' .. id .. ':events' end
function KEY.blob(id, digest) return 'run:' .. id .. ':blob:' .. digest end
function KEY.blobs(id) return 'run:' .. id .. ':blobs' end
function KEY.waits(id) return 'run:' .. id .. ':waits' end
function KEY.archive(id) return 'run:' .. id .. ':archive' end
function KEY.tree(id) return 'run:' .. id .. ':tree' end
function KEY.prompts(id) return 'run:' .. id .. ':prompts' end
function KEY.idempotency(tenant, key) return 'idempotency:' .. tenant .. ':' .. key end
function KEY.index(tenant, status)
  if status then return 'index:' .. tenant .. ':' .. status end
  return 'index:' .. tenant
end
function KEY.worker(id) return 'worker:' .. id end
function KEY.lost(worker) return 'worker:' .. worker .. ':lost' end
function KEY.held(workflow, version) return 'held:' .. workflow .. ':' .. version end
function KEY.claims(claim) return 'claims:' .. claim end
function KEY.endpoint(digest) return 'endpoint:' .. digest end

local ENDPOINT_TTL = 3600000
-- The newest form of a record that these scripts know (model.py has the same): what is newer is left to its own.
local SCHEMA = 1
local TERMINAL = { completed = true, incomplete = true, failed = true, cancelled = true }

-- Arguments are read in order.
local position = 0
local function take() position = position + 1; return ARGV[position] end
local function take_number() return tonumber(take()) end
local function take_rows(width)
  local rows = {}
  for i = 1, take_number() do
    rows[i] = {}
    for j = 1, width do rows[i][j] = take() end
  end
  return rows
end

local FIELDS = { 'v', 'status', 'epoch', 'claim', 'lease', 'dispatch', 'seq', 'signals', 'root', 'tenant',
  'workflow', 'version', 'crashes', 'ended_by', 'ended_as', 'wake_reason', 'ttl', 'parked_at',
  'band', 'timeout', 'deadline', 'not_before', 'owner' }
local NUMBERS = { 'v', 'epoch', 'lease', 'dispatch', 'seq', 'signals', 'crashes', 'ttl', 'band', 'timeout', 'deadline',
  'not_before' }

local function load_run(id)
  local values = redis.pcall('HMGET', KEY.run(id), unpack(FIELDS))
  if values.err or not values[2] then return nil end
  local run = { id = id, out = {} }
  for i, name in ipairs(FIELDS) do run[name] = values[i] or '' end
  for _, name in ipairs(NUMBERS) do run[name] = number(run[name]) end
  return run
end

-- Parked, and nothing has woken it since: no dispatch of it waits.
local function is_parked(run)
  return run.claim == '' and run.ended_as == 'parked' and run.parked_at == int(run.dispatch)
end

-- Whether a broken call left this very event in the log; else the next free number goes into run.seq.
local function left_behind(run, key, kind, step)
  local entry = redis.call('XRANGE', key, int(run.seq) .. '-0', int(run.seq) .. '-0')[1]
  if entry and entry[2][2] == kind and entry[2][6] == int(run.epoch) and entry[2][12] == step then return true end
  local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
  run.seq = number(string.match(last and last[1] or '0-0', '^%d+')) + 1
  return false
end

-- Events: no number is given twice, and a call that is made again finds what it wrote before it broke.
local function emit(run, kind, agent, step, data)
  run.seq = run.seq + 1
  local key = KEY.events(run.id)
  local entry = { 'type', kind, 'time', int(now), 'epoch', int(run.epoch), 'run_id', run.id,
    'agent', agent, 'step', step, 'data', data }
  if redis.pcall('XADD', key, int(run.seq) .. '-0', unpack(entry)).err then
    if not left_behind(run, key, kind, step) then redis.call('XADD', key, int(run.seq) .. '-0', unpack(entry)) end
  end
  local text = '{"seq":' .. int(run.seq) .. ',"type":"' .. kind .. '","run_id":"' .. run.id ..
    '","epoch":' .. int(run.epoch) .. ',"time":' .. int(now)
  if agent ~= '' then text = text .. ',"agent":"' .. agent .. '"' end
  if step ~= '' then text = text .. ',"step":"' .. step .. '"' end
  run.out[#run.out + 1] = text .. ',"data":' .. data .. '}'
end

local function emit_rows(run, rows)
  for _, row in ipairs(rows) do emit(run, row[1], row[2], row[3], row[4]) end
end

local function publish(run)
  if #run.out > 0 then redis.call('PUBLISH', KEY.events(run.id), table.concat(run.out, '\n')) end
end

-- The queue: arq's own format, so that a stock worker can read it.
local function wake()
  if redis.call('LLEN', KEY.wake) == 0 then redis.call('LPUSH', KEY.wake, '1') end
end

local function drop_job(job)
  redis.call('ZREM', KEY.queue, job)
  redis.call('DEL', 'arq:job:' .. job, 'arq:in-progress:' .. job, 'arq:retry:' .. job)
end

local function drop_dispatch(run)
  if run.dispatch == 0 then return end
  local job = run.id .. ':' .. int(run.dispatch)
  drop_job(job)
  redis.call('ZREM', KEY.held(run.workflow, run.version), job)
end

local GRACE = 30000
local BAND = 100000000000

-- Gives the run a new dispatch; the caller has set `due` and writes `dispatch` with the record.
local function enqueue(run, band, reason)
  redis.call('ZADD', KEY.due, int(now + GRACE), run.id)
  local former = run.dispatch
  run.dispatch = former + 1
  run.wake_reason = reason
  redis.call('HSET', KEY.run(run.id), 'dispatch', int(run.dispatch), 'wake_reason', reason)
  local job = run.id .. ':' .. int(run.dispatch)
  redis.call('SET', 'arq:job:' .. job, '{"t":null,"f":"execute_run","a":["' .. run.id .. '",' ..
    int(run.dispatch) .. '],"k":{},"et":' .. int(now) .. '}')
  redis.call('ZADD', KEY.queue, int(1 + band * BAND + redis.call('INCR', KEY.counter)), job)
  wake()
  if former > 0 then
    drop_job(run.id .. ':' .. int(former))
    redis.call('ZREM', KEY.held(run.workflow, run.version), run.id .. ':' .. int(former))
  end
end

-- Ends the ownership, with the status that the run goes on in and whatever else is to be written with it.
local function end_ownership(run, as, status, ...)
  if run.status ~= status then redis.call('ZADD', KEY.index(run.tenant, status), 0, run.id) end
  redis.call('HSET', KEY.run(run.id), 'status', status, 'seq', int(run.seq), 'claim', '', 'lease', '0', 'owner', '',
    'ended_by', int(run.epoch) .. ':' .. run.claim, 'ended_as', as, 'updated_at', int(now), ...)
  if run.status ~= status then redis.call('ZREM', KEY.index(run.tenant, run.status), run.id) end
  run.status, run.claim = status, ''
end

local function dispossess(run, reason)
  redis.call('ZADD', KEY.due, int(now), run.id)
  end_ownership(run, 'fenced', run.status)
  enqueue(run, 0, reason)
end

-- The record and 'owned'; or nil and what the caller is told instead.
local function owned(id, fence, told)
  local run = load_run(id)
  if not run then return nil, 'fenced' end
  if run.ended_by == fence then return nil, run.ended_as end
  if TERMINAL[run.status] or run.claim == '' or fence ~= int(run.epoch) .. ':' .. run.claim then
    return nil, 'fenced'
  end
  if run.seq < told then
    dispossess(run, 'lost')
    return nil, 'fenced'
  end
  return run, 'owned'
end

-- When somebody must look at the run: at that time, or at its deadline when that is sooner.
local function look_again(run, at)
  if run.deadline > 0 and run.deadline < at then at = run.deadline end
  redis.call('ZADD', KEY.due, int(at), run.id)
end

local function own_keys(id)
  local keys = { KEY.run(id), KEY.journal(id), KEY.starts(id), KEY.events(id), KEY.blobs(id), KEY.waits(id),
    KEY.tree(id), KEY.prompts(id), KEY.archive(id) }
  for _, digest in ipairs(redis.call('SMEMBERS', KEY.blobs(id))) do
    keys[#keys + 1] = KEY.blob(id, digest)
  end
  return keys
end

-- Ends a run for good; `as` is what its last owner is told when it comes again.
local function conclude(run, as, status, events, output, problem)
  redis.call('ZADD', KEY.due, int(now + run.ttl), run.id)
  emit_rows(run, events)
  end_ownership(run, as, status, 'output', output, 'error', problem, 'ended_at', int(now), 'wait_reason', '')
  drop_dispatch(run)
  redis.call('DEL', KEY.waits(run.id))
  -- Effects that were begun stay in doubt: a retry must not make them again without a word.
  for _, field in ipairs(redis.call('HKEYS', KEY.starts(run.id))) do
    if string.sub(field, 1, 7) ~= 'intent:' then redis.call('HDEL', KEY.starts(run.id), field) end
  end
  if run.root == run.id then
    local members = redis.call('SMEMBERS', KEY.tree(run.id))
    members[#members + 1] = run.id
    for _, member in ipairs(members) do
      for _, key in ipairs(own_keys(member)) do
        -- The records stay for the sweep, which alone knows the index entries that go with them.
        if key ~= KEY.run(member) then redis.call('PEXPIRE', key, int(run.ttl + 60000)) end
      end
    end
  end
  publish(run)
end

-- What the scripts themselves say of a run that they end; errors.py has the same.
local PROBLEM = {
  timeout = '{"code":"timeout","message":"The run took longer than its timeout.","retryable":true}',
  poisoned = '{"code":"poisoned","message":"The run ended every process that worked on it.","retryable":false}',
}

-- Tells the owner to drop what it does for a run that is no longer its own.
local function dismiss(owner, id, fence)
  if owner ~= '' then redis.call('PUBLISH', KEY.lost(owner), id .. ' ' .. fence) end
end

-- An effect that was begun and not committed may or may not have happened: nobody will find out by doing it again.
local function in_doubt(run)
  local events, starts = {}, redis.call('HGETALL', KEY.starts(run.id))
  for i = 1, #starts, 2 do
    local step = string.match(starts[i], '^intent:(.*)$')
    local agent, data = string.match(starts[i + 1], '^%d+|([^|]*)|(.*)$')
    if step and data and redis.call('HEXISTS', KEY.journal(run.id), step) == 0 then
      events[#events + 1] = { 'tool.in_doubt', agent, step, data }
    end
  end
  return events
end

-- `as` is what its owner is told when it was the owner who said so.
local function fail(run, code, as)
  local owner, fence = run.owner, int(run.epoch) .. ':' .. run.claim
  if code == 'poisoned' then redis.call('ZADD', KEY.index(run.tenant, 'dead'), 0, run.id) end
  local events = in_doubt(run)
  events[#events + 1] = { 'run.failed', '', '', PROBLEM[code] }
  conclude(run, as or 'fenced', 'failed', events, '', PROBLEM[code])
  dismiss(owner, run.id, fence)
end

local function overdue(run)
  return run.deadline > 0 and run.deadline <= now and run.status ~= 'awaiting_input'
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
      redis.call('ZREM', KEY.index(run.tenant), id)
      redis.call('ZREM', KEY.index(run.tenant, run.status), id)
      redis.call('ZREM', KEY.index(run.tenant, 'dead'), id)
    end
    for i = #keys, 1, -1 do redis.call('DEL', keys[i]) end
    redis.call('ZREM', KEY.due, id)
  end
end
