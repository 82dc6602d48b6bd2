-- ARGV run, tenant, workflow, version, v, input, metadata, band, ttl, event (type agent step data),
--      idempotency key, fingerprint, its ttl  ->  accepted | replayed | mismatch, run, created_at
local id, tenant, workflow, version, v = take(), take(), take(), take(), take()
local input, metadata, band, ttl = take(), take(), take_number(), take()
local created = { take(), take(), take(), take() }
local key, fingerprint, key_ttl = take(), take(), take()

local existing = redis.call('HGET', KEY.run(id), 'created_at')
if existing then return { 'accepted', id, existing } end

if key ~= '' then
  local first = redis.call('HMGET', KEY.idempotency(tenant, key), 'fingerprint', 'run_id', 'created_at', 'whole')
  if first[1] and (first[4] or redis.call('EXISTS', KEY.run(first[2])) == 1) then
    if first[1] ~= fingerprint then return { 'mismatch', first[2], first[3] } end
    return { 'replayed', first[2], first[3] }
  end
end

local run = { id = id, out = {}, seq = 0, epoch = 0, dispatch = 0, workflow = workflow, version = version }
redis.call('ZADD', KEY.due, int(now + GRACE), id)
if key ~= '' then
  redis.call('HSET', KEY.idempotency(tenant, key), 'fingerprint', fingerprint, 'run_id', id, 'created_at', int(now))
  redis.call('PEXPIRE', KEY.idempotency(tenant, key), key_ttl)
end
redis.call('ZADD', KEY.index(tenant), 0, id)
redis.call('ZADD', KEY.index(tenant, 'pending'), 0, id)
redis.call('HSET', KEY.run(id), 'v', v, 'tenant', tenant, 'workflow', workflow, 'version', version,
  'status', 'pending', 'input', input, 'metadata', metadata, 'ttl', ttl, 'band', int(band), 'epoch', '0', 'claim', '',
  'lease', '0', 'seq', '1', 'signals', '0', 'dispatch', '0', 'root', id, 'created_at', int(now), 'updated_at', int(now))
emit(run, created[1], created[2], created[3], created[4])
enqueue(run, band, 'accepted')
if key ~= '' then redis.call('HSET', KEY.idempotency(tenant, key), 'whole', '1') end
publish(run)
return { 'accepted', id, int(now) }
