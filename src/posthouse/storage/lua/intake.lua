-- Taking runs in; accept, retry and fire share it, and sweep, which measures for them.

local function seconds(ms) return math.min(300, math.max(1, math.ceil(ms / 1000))) end

-- Seconds until so many have been taken, as fast as the fleet took runs lately while some waited; `first` is since
-- when the next one to begin has waited.
local function patience(so_many, first)
  local drained = redis.call('HMGET', KEY.drained, 'queued_since', 'queued_ms', 'queued_count')
  local since, count = number(drained[1]), number(drained[3])
  if count == 0 then return 30 end
  -- The last claim left none behind: they wait since the first of them came.
  if since == 0 then since = first end
  return seconds(so_many * (number(drained[2]) + (since > 0 and now - since or 0)) / count)
end

-- How full Redis is, in percent of what it may use; 0 when that has no bound, or when it may not be asked.
local function measure_memory()
  local memory, percent = redis.pcall('INFO', 'memory'), 0
  if type(memory) == 'string' then
    local most = number(string.match(memory, 'maxmemory:(%d+)'))
    local used = number(string.match(memory, 'used_memory:(%d+)'))
    percent = most > 0 and math.floor(used * 100 / most) or 0
  end
  redis.call('HSET', KEY.sweep, 'memory', int(percent), 'memory_at', int(now))
  return percent
end

-- What the last sweep found; what is older than this says nothing when no worker lives.
local STALE = 10000
local function memory_percent()
  local found = redis.call('HMGET', KEY.sweep, 'memory', 'memory_at')
  if now - number(found[2]) > STALE then return measure_memory() end
  return number(found[1])
end

-- nil while there is room; else 'full', the reason, seconds until it is worth another try.
local function no_room(most, longest, mark)
  local waiting = redis.call('ZCOUNT', KEY.queue, int(BAND), '+inf')
  local first = redis.call('ZRANGEBYSCORE', KEY.queue, int(BAND), '+inf', 'LIMIT', 0, 1)[1]
  local since = first and number(redis.call('HGET', KEY.run(string.match(first, '^%w+') or ''), 'updated_at')) or 0
  if waiting >= most then return { 'full', 'depth', patience(waiting - most + most / 10, since) } end
  if since > 0 and now - since > longest then return { 'full', 'age', patience(waiting / 10, since) } end
  if memory_percent() >= mark then return { 'full', 'memory', 30 } end
  return nil
end

-- The same for runs whose time has not come: of them, too, only so many may wait, and the first one makes room.
local function no_room_for_later(most)
  if redis.call('ZCARD', KEY.later) < most then return nil end
  local first = redis.call('ZRANGE', KEY.later, 0, 0, 'WITHSCORES')[2]
  return { 'full', 'later', seconds(number(first) - now) }
end

-- Writes a new run and its queue entry; the caller has made sure that there is none, and publishes what it returns.
-- new: id, tenant, workflow, version, v, input, metadata, band, ttl, created (event), not_before, timeout (ms, numbers),
-- models ('' = none), budget (rows of name and amount)
local function accept_run(new)
  local id, tenant, created = new.id, new.tenant, new.created
  local run = { id = id, out = {}, seq = 0, epoch = 0, dispatch = 0, workflow = new.workflow, version = new.version }
  local later = new.not_before > now
  redis.call('ZADD', KEY.due, int(later and new.not_before or now + GRACE), id)
  redis.call('ZADD', KEY.index(tenant), 0, id)
  redis.call('ZADD', KEY.index(tenant, 'pending'), 0, id)
  for _, row in ipairs(new.budget or {}) do redis.call('HSET', KEY.budget(id), row[1], row[2]) end
  redis.call('HSET', KEY.run(id), 'v', new.v, 'tenant', tenant, 'workflow', new.workflow, 'version', new.version,
    'status', 'pending', 'input', new.input, 'metadata', new.metadata, 'ttl', new.ttl, 'band', int(new.band),
    'epoch', '0', 'claim', '', 'lease', '0', 'seq', '1', 'signals', '0', 'dispatch', '0', 'root', id,
    'created_at', int(now), 'updated_at', int(now), 'timeout', int(new.timeout), 'not_before', int(new.not_before),
    'models', new.models or '', 'budget', #(new.budget or {}) > 0 and '1' or '')
  emit(run, created[1], created[2], created[3], created[4])
  -- Last: whoever makes a broken call again is answered by the record.
  if later then redis.call('ZADD', KEY.later, int(new.not_before), id) else enqueue(run, new.band, 'accepted') end
  return run
end
