-- Taking runs in; accept and fire share it.

-- Seconds until so many have been taken, as fast as the fleet took runs lately.
local function patience(so_many)
  local drained = redis.call('HMGET', KEY.drained, 'count', 'since', 'former_count', 'former_ms')
  local count, ms = number(drained[1]) + number(drained[3]), now - number(drained[2]) + number(drained[4])
  if count == 0 or not drained[2] then return 30 end
  return math.min(300, math.max(1, math.ceil(so_many * ms / count / 1000)))
end

-- nil while there is room; else 'full', the reason, seconds until it is worth another try.
local function no_room(most, longest, mark)
  local waiting = redis.call('ZCOUNT', KEY.queue, int(BAND), '+inf')
  if waiting >= most then return { 'full', 'depth', patience(waiting - most + most / 10) } end
  local first = redis.call('ZRANGEBYSCORE', KEY.queue, int(BAND), '+inf', 'LIMIT', 0, 1)[1]
  local since = first and number(redis.call('HGET', KEY.run(string.match(first, '^%w+') or ''), 'updated_at')) or 0
  if since > 0 and now - since > longest then return { 'full', 'age', patience(waiting / 10) } end
  if number(redis.call('HGET', KEY.sweep, 'memory')) >= mark then return { 'full', 'memory', 30 } end
  return nil
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
  if not later then enqueue(run, new.band, 'accepted') end
  return run
end
