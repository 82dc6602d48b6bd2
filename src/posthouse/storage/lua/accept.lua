-- ARGV run, tenant, workflow, version, v, input, metadata, band, ttl, event (type agent step data),
--      idempotency key, fingerprint, its ttl, not before (ms), timeout (ms), most that may wait, longest wait (ms),
--      memory mark (percent)
-- -> accepted | replayed | mismatch, run, created_at; or full, reason, seconds until it is worth another try
local id, tenant, workflow, version, v = take(), take(), take(), take(), take()
local input, metadata, band, ttl = take(), take(), take_number(), take()
local created = { take(), take(), take(), take() }
local key, fingerprint, key_ttl = take(), take(), take()
local not_before, timeout = take_number(), take_number()
local most, longest, mark = take_number(), take_number(), take_number()

local existing = redis.call('HGET', KEY.run(id), 'created_at')
if existing then return { 'accepted', id, existing } end

if key ~= '' then
  local first = redis.call('HMGET', KEY.idempotency(tenant, key), 'fingerprint', 'run_id', 'created_at', 'whole')
  if first[1] and (first[4] or redis.call('EXISTS', KEY.run(first[2])) == 1) then
    if first[1] ~= fingerprint then return { 'mismatch', first[2], first[3] } end
    return { 'replayed', first[2], first[3] }
  end
end

-- Seconds until so many have been taken, as fast as the fleet took runs lately.
local function patience(so_many)
  local drained = redis.call('HMGET', KEY.drained, 'count', 'since', 'former_count', 'former_ms')
  local count, ms = number(drained[1]) + number(drained[3]), now - number(drained[2]) + number(drained[4])
  if count == 0 or not drained[2] then return 30 end
  return math.min(300, math.max(1, math.ceil(so_many * ms / count / 1000)))
end

local waiting = redis.call('ZCOUNT', KEY.queue, int(BAND), '+inf')
if waiting >= most then return { 'full', 'depth', patience(waiting - most + most / 10) } end
local first = redis.call('ZRANGEBYSCORE', KEY.queue, int(BAND), '+inf', 'LIMIT', 0, 1)[1]
local since = first and number(redis.call('HGET', KEY.run(string.match(first, '^%w+') or ''), 'updated_at')) or 0
if since > 0 and now - since > longest then return { 'full', 'age', patience(waiting / 10) } end
if number(redis.call('HGET', KEY.sweep, 'memory')) >= mark then return { 'full', 'memory', 30 } end

local run = { id = id, out = {}, seq = 0, epoch = 0, dispatch = 0, workflow = workflow, version = version }
local later = not_before > now
redis.call('ZADD', KEY.due, int(later and not_before or now + GRACE), id)
if key ~= '' then
  redis.call('HSET', KEY.idempotency(tenant, key), 'fingerprint', fingerprint, 'run_id', id, 'created_at', int(now))
  redis.call('PEXPIRE', KEY.idempotency(tenant, key), key_ttl)
end
redis.call('ZADD', KEY.index(tenant), 0, id)
redis.call('ZADD', KEY.index(tenant, 'pending'), 0, id)
redis.call('HSET', KEY.run(id), 'v', v, 'tenant', tenant, 'workflow', workflow, 'version', version,
  'status', 'pending', 'input', input, 'metadata', metadata, 'ttl', ttl, 'band', int(band), 'epoch', '0', 'claim', '',
  'lease', '0', 'seq', '1', 'signals', '0', 'dispatch', '0', 'root', id, 'created_at', int(now), 'updated_at', int(now),
  'timeout', int(timeout), 'not_before', int(not_before))
emit(run, created[1], created[2], created[3], created[4])
if not later then enqueue(run, band, 'accepted') end
if key ~= '' then redis.call('HSET', KEY.idempotency(tenant, key), 'whole', '1') end
publish(run)
return { 'accepted', id, int(now) }
