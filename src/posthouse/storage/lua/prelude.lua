-- Shared by every script: key names (keys.py has the same), numbers, events, the queue, ownership.
-- Order of writes, because a failed call is not rolled back: `due` first, so that the sweep finds
-- whatever is left half done; then the record; deletions last.

local function int(number) return string.format('%.0f', number) end
local function number(text) return tonumber(text or '0') or 0 end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local KEY = { due = 'due', queue = 'arq:queue', wake = 'queue:wake', counter = 'queue:counter', sweep = 'sweep',
  drained = 'queue:drained', workers = 'workers', all_held = 'held', schedules = 'schedules', later = 'later' }
function KEY.run(id) return 'run:' .. id end
function KEY.journal(id) return 'run:' .. id .. ':journal' end
function KEY.starts(id) return 'run:' .. id .. ':starts' end
function KEY.events(id) return 'run:' .. id .. ':events' end
function KEY.blob(id, digest) return 'run:' .. id .. ':blob:' .. digest end
function KEY.blobs(id) return 'run:' .. id .. ':blobs' end
function KEY.waits(id) return 'run:' .. id .. ':waits' end
function KEY.archive(id) return 'run:' .. id .. ':archive' end
function KEY.inputs(id) return 'run:' .. id .. ':inputs' end
function KEY.open_inputs(root) return 'run:' .. root .. ':open_inputs' end
function KEY.budget(root) return 'run:' .. root .. ':budget' end
function KEY.inbox(tenant) return 'inputs:' .. tenant end
function KEY.tree(id) return 'run:' .. id .. ':tree' end
function KEY.prompts(id) return 'run:' .. id .. ':prompts' end
function KEY.idempotency(tenant, key) return 'idempotency:' .. tenant .. ':' .. key end
function KEY.index(tenant, status)
  if status then return 'index:' .. tenant .. ':' .. status end
  return 'index:' .. tenant
end
-- Children stand in lists of their own: whoever lists runs asked for none of them.
local function index_of(run, status)
  return KEY.index((run.parent or '') ~= '' and run.tenant .. ':children' or run.tenant, status)
end
function KEY.worker(id) return 'worker:' .. id end
function KEY.lost(worker) return 'worker:' .. worker .. ':lost' end
function KEY.held(workflow, version) return 'held:' .. workflow .. ':' .. version end
function KEY.claims(claim) return 'claims:' .. claim end
function KEY.endpoint(digest) return 'endpoint:' .. digest end
function KEY.schedule(id) return 'schedule:' .. id end
function KEY.schedules_of(tenant) return 'schedules:' .. tenant end
function KEY.pace(digest) return 'pace:' .. digest end

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
  'band', 'timeout', 'deadline', 'not_before', 'owner', 'parent', 'parent_step', 'subtask', 'depth', 'budget',
  'asking', 'asked_since' }
local NUMBERS = { 'v', 'epoch', 'lease', 'dispatch', 'seq', 'signals', 'crashes', 'ttl', 'band', 'timeout', 'deadline',
  'not_before', 'depth', 'asking', 'asked_since' }

local function load_run(id)
  local values = redis.pcall('HMGET', KEY.run(id), unpack(FIELDS))
  if values.err or not values[2] then return nil end
  local run = { id = id, out = {}, up = {} }
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

local function envelope(log, run, kind, agent, step, data)
  local text = '{"seq":' .. int(log.seq) .. ',"type":"' .. kind .. '","run_id":"' .. run.id ..
    '","epoch":' .. int(run.epoch) .. ',"time":' .. int(now)
  if agent ~= '' then text = text .. ',"agent":"' .. agent .. '"' end
  if step ~= '' then text = text .. ',"step":"' .. step .. '"' end
  return text .. ',"data":' .. data .. '}'
end

-- What a child says of itself, as its root says it; of the other run.* events a root says nothing.
local OF_A_SUBTASK = { ['run.started'] = 'subtask.started', ['run.completed'] = 'subtask.completed',
  ['run.incomplete'] = 'subtask.completed', ['run.failed'] = 'subtask.failed', ['run.cancelled'] = 'subtask.cancelled' }

local function to_the_root(run, kind, agent, step, data)
  if string.sub(kind, 1, 4) == 'run.' then
    local as = OF_A_SUBTASK[kind]
    if not as then return end
    local fields = '"subtask":"' .. run.subtask .. '"'
    if as == 'subtask.completed' then fields = fields .. ',"status":"' .. string.sub(kind, 5) .. '"' end
    kind, data = as, '{' .. fields .. (data == '{}' and '' or ',') .. string.sub(data, 2)
  end
  run.up[#run.up + 1] = { kind, agent, step, data }
end

-- Events: no number is given twice, and a call that is made again finds what it wrote before it broke.
local function emit(run, kind, agent, step, data)
  run.seq = run.seq + 1
  local key = KEY.events(run.id)
  local entry = { 'type', kind, 'time', int(now), 'epoch', int(run.epoch), 'run_id', run.id,
    'agent', agent, 'step', step, 'data', data }
  if redis.pcall('XADD', key, int(run.seq) .. '-0', unpack(entry)).err then
    run.again = left_behind(run, key, kind, step)
    if not run.again then redis.call('XADD', key, int(run.seq) .. '-0', unpack(entry)) end
  end
  run.out[#run.out + 1] = envelope(run, run, kind, agent, step, data)
  if (run.parent or '') ~= '' then to_the_root(run, kind, agent, step, data) end
end

local function emit_rows(run, rows)
  for _, row in ipairs(rows) do emit(run, row[1], row[2], row[3], row[4]) end
end

-- What a call that broke has copied of these events already: their places in the root's log.
local LOOKED_BACK = 256
local function copied_before(run, key)
  local places = {}
  if not run.again then return places end
  for _, entry in ipairs(redis.call('XREVRANGE', key, '+', '-', 'COUNT', LOOKED_BACK)) do
    local told = entry[2]
    if told[8] == run.id and told[6] == int(run.epoch) then
      places[told[2] .. '|' .. told[12]] = number(string.match(entry[1], '^%d+'))
    end
  end
  return places
end

-- Copies what a child has said into its root's log, under the root's own numbers.
local function raise(run)
  local root = load_run(run.root)
  if not root or TERMINAL[root.status] then return end
  local key, rows, before = KEY.events(root.id), {}, root.seq
  local places = copied_before(run, key)
  for i, row in ipairs(run.up) do
    local place = places[row[1] .. '|' .. row[3]]
    root.seq = place and math.max(place, root.seq) or root.seq + 1
    local entry = { 'type', row[1], 'time', int(now), 'epoch', int(run.epoch), 'run_id', run.id,
      'agent', row[2], 'step', row[3], 'data', row[4] }
    if not place and redis.pcall('XADD', key, int(root.seq) .. '-0', unpack(entry)).err then
      local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
      root.seq = number(string.match(last and last[1] or '0-0', '^%d+')) + 1
      redis.call('XADD', key, int(root.seq) .. '-0', unpack(entry))
    end
    rows[i] = envelope(root, run, row[1], row[2], row[3], row[4])
  end
  redis.call('HSET', KEY.run(root.id), 'seq', int(root.seq))
  redis.call('HINCRBY', KEY.run(root.id), 'copied', int(root.seq - before))
  redis.call('PUBLISH', key, table.concat(rows, '\n'))
end

local function publish(run)
  if #run.out > 0 then redis.call('PUBLISH', KEY.events(run.id), table.concat(run.out, '\n')) end
  if run.up and #run.up > 0 then raise(run) end
  run.out, run.up = {}, {}
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
  redis.call('HSET', KEY.run(run.id), 'dispatch', int(run.dispatch), 'wake_reason', reason, 'wait_reason', '')
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

-- Budgets: limits, what was spent, and what is reserved for calls in flight, all in whole numbers.
local SPENT = { 'tokens', 'nano_usd', 'model_calls', 'tool_calls' }

-- Frees what one step reserved; `lost` when nobody will say any more what it took: then it counts as spent.
local function free_reservation(key, field, lost)
  local text = redis.call('HGET', key, field)
  if not text then return end
  -- In one write, so that a call that breaks has freed all of it or nothing.
  local write, at = { field, '0|0|0|0' }, 0
  for amount in string.gmatch(text, '%d+') do
    at = at + 1
    local what = SPENT[at]
    local sums = redis.call('HMGET', key, 'reserved_' .. what, 'spent_' .. what, 'lost_' .. what)
    write[#write + 1], write[#write + 2] = 'reserved_' .. what, int(number(sums[1]) - number(amount))
    if lost then
      write[#write + 1], write[#write + 2] = 'spent_' .. what, int(number(sums[2]) + number(amount))
      write[#write + 1], write[#write + 2] = 'lost_' .. what, int(number(sums[3]) + number(amount))
    end
  end
  redis.call('HSET', key, unpack(write))
  redis.call('HDEL', key, field)
end

-- Whoever reserved these will not settle them any more: what they were for may have been paid.
local function spend_reservations(run, of_the_tree)
  if run.budget ~= '1' then return end
  local key, prefix = KEY.budget(run.root), 'reserved:' .. (of_the_tree and '' or run.id .. ':')
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #prefix) == prefix then free_reservation(key, field, true) end
  end
end

-- Spent of the limit that is nearest, in percent.
local function spent_percent(run)
  local most = 0
  for _, what in ipairs(SPENT) do
    local values = redis.call('HMGET', KEY.budget(run.root), 'limit_' .. what, 'spent_' .. what)
    if values[1] then most = math.max(most, math.floor(number(values[2]) * 100 / math.max(1, number(values[1])))) end
  end
  return most
end

-- How long a tree has worked since its start or its last retry, in milliseconds, without the time that people took.
local function run_ms(run)
  local times = redis.call('HMGET', KEY.run(run.root), 'started_at', 'retried_at', 'asked_ms', 'asking', 'asked_since',
    'status')
  if times[6] == 'pending' then return 0 end
  local since = math.max(number(times[1] or int(now)), number(times[2]))
  local open = number(times[4]) > 0 and now - number(times[5]) or 0
  return now - since - number(times[3]) - open
end

-- A step is done: what it took is spent, what was reserved for it is free again.
local function settle_reservation(run, step, usage)
  if run.budget ~= '1' then return end
  local key = KEY.budget(run.root)
  free_reservation(key, 'reserved:' .. run.id .. ':' .. step, false)
  local of = { input_tokens = 'tokens', output_tokens = 'tokens', wasted_tokens = 'tokens', nano_usd = 'nano_usd',
    wasted_nano_usd = 'nano_usd', model_calls = 'model_calls', tool_calls = 'tool_calls' }
  for _, row in ipairs(usage) do
    if of[row[1]] then redis.call('HINCRBY', key, 'spent_' .. of[row[1]], row[2]) end
  end
  local percent = spent_percent(run)
  if percent >= 80 and redis.call('HSETNX', key, 'warned', int(now)) == 1 then
    emit(run, 'budget.warning', '', step, '{"percent":' .. int(percent) .. '}')
  end
end

-- Ends the ownership, with the status that the run goes on in and whatever else is to be written with it.
local function end_ownership(run, as, status, ...)
  spend_reservations(run)
  if run.status ~= status then redis.call('ZADD', index_of(run, status), 0, run.id) end
  redis.call('HSET', KEY.run(run.id), 'status', status, 'seq', int(run.seq), 'claim', '', 'lease', '0', 'owner', '',
    'ended_by', int(run.epoch) .. ':' .. run.claim, 'ended_as', as, 'updated_at', int(now), ...)
  if run.status ~= status then redis.call('ZREM', index_of(run, run.status), run.id) end
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
  if run.deadline > 0 and run.asking == 0 and run.deadline < at then at = run.deadline end
  redis.call('ZADD', KEY.due, int(at), run.id)
end

local function own_keys(id)
  local keys = { KEY.run(id), KEY.journal(id), KEY.starts(id), KEY.events(id), KEY.blobs(id), KEY.waits(id),
    KEY.tree(id), KEY.prompts(id), KEY.archive(id), KEY.inputs(id), KEY.open_inputs(id), KEY.budget(id) }
  for _, digest in ipairs(redis.call('SMEMBERS', KEY.blobs(id))) do
    keys[#keys + 1] = KEY.blob(id, digest)
  end
  return keys
end
