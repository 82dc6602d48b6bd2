-- ARGV run, tenant, workflow, version, v, input, metadata, band, ttl, event (type agent step data),
--      idempotency key, fingerprint, its ttl, not before (ms), timeout (ms), most that may wait, longest wait (ms),
--      memory mark (percent), models of its own (JSON, '' = none), budget (name amount ...)
-- -> accepted | replayed | mismatch, run, created_at; or full, reason, seconds until it is worth another try
local new = { id = take(), tenant = take(), workflow = take(), version = take(), v = take(),
  input = take(), metadata = take(), band = take_number(), ttl = take() }
new.created = { take(), take(), take(), take() }
local key, fingerprint, key_ttl = take(), take(), take()
new.not_before, new.timeout = take_number(), take_number()
local most, longest, mark = take_number(), take_number(), take_number()
new.models, new.budget = take(), take_rows(2)
local id, tenant = new.id, new.tenant

local existing = redis.call('HGET', KEY.run(id), 'created_at')
if existing then return { 'accepted', id, existing } end

if key ~= '' then
  local first = redis.call('HMGET', KEY.idempotency(tenant, key), 'fingerprint', 'run_id', 'created_at', 'whole')
  if first[1] and (first[4] or redis.call('EXISTS', KEY.run(first[2] or '')) == 1) then
    if first[1] ~= fingerprint then return { 'mismatch', first[2] or '', first[3] } end
    return { 'replayed', first[2], first[3] }
  end
end

local full = no_room(most, longest, mark)
if not full and new.not_before > now then full = no_room_for_later(most) end
if full then return full end

if key ~= '' then
  redis.call('HSET', KEY.idempotency(tenant, key), 'fingerprint', fingerprint, 'run_id', id, 'created_at', int(now))
  redis.call('PEXPIRE', KEY.idempotency(tenant, key), key_ttl)
end
local run = accept_run(new)
if key ~= '' then redis.call('HSET', KEY.idempotency(tenant, key), 'whole', '1') end
publish(run)
return { 'accepted', id, int(now) }
