-- ARGV schedule, tenant, created_at, next slot, idempotency key, fingerprint, its ttl, fields (name, value ...)
-- -> created | replayed | mismatch, schedule, created_at
local id, tenant, created_at, next_slot = take(), take(), take(), take()
local key, fingerprint, key_ttl = take(), take(), take()
local fields = { 'tenant', tenant, 'created_at', created_at, 'next', next_slot }
for _, row in ipairs(take_rows(2)) do
  fields[#fields + 1] = row[1]
  fields[#fields + 1] = row[2]
end

if key ~= '' then
  local first = redis.call('HMGET', KEY.idempotency(tenant, key), 'fingerprint', 'schedule_id', 'created_at', 'whole',
    'run_id')
  local there = first[1] and (first[4] or redis.call('EXISTS', KEY.schedule(first[2] or '')) == 1 or
    redis.call('EXISTS', KEY.run(first[5] or '')) == 1)
  if there and first[1] ~= fingerprint then return { 'mismatch', first[2] or '', first[3] } end
  if there and first[4] then return { first[2] == id and 'created' or 'replayed', first[2], first[3] } end
  if there then
    -- A call that broke made this one; it is finished here.
    id, created_at = first[2], first[3]
  else
    redis.call('HSET', KEY.idempotency(tenant, key), 'fingerprint', fingerprint, 'schedule_id', id,
      'created_at', created_at)
  end
  redis.call('PEXPIRE', KEY.idempotency(tenant, key), key_ttl)
end
-- The record first: by it the next request with the key knows this one.
if redis.call('EXISTS', KEY.schedule(id)) == 0 then redis.call('HSET', KEY.schedule(id), unpack(fields)) end
redis.call('ZADD', KEY.schedules_of(tenant), 0, id)
-- Should it have fired meanwhile, fire puts its slot right.
redis.call('ZADD', KEY.schedules, 'NX', next_slot, id)
if key ~= '' then redis.call('HSET', KEY.idempotency(tenant, key), 'whole', '1') end
return { 'created', id, created_at }
