-- ARGV run, tenant, seq that the caller saw, event (type agent step data), steps that are done again (key ...)
-- -> retried | missing | newer | child | live, status | completed | moved
local id, tenant, seen = take(), take(), take_number()
local event = { take(), take(), take(), take() }
local steps = take_rows(1)
local run = load_run(id)
if not run or run.tenant ~= tenant then return { 'missing', '' } end
if run.v > SCHEMA then return { 'newer', run.status } end
if run.root ~= id then return { 'child', '' } end
local retries = number(redis.call('HGET', KEY.run(id), 'retries'))
if not TERMINAL[run.status] then return { retries > 0 and 'retried' or 'live', run.status } end
if run.status == 'completed' then return { 'completed', run.status } end
if run.seq ~= seen then return { 'moved', run.status } end
-- Its time is over: Redis may have dropped its journal already, and only the sweep has not come yet.
if number(redis.call('HGET', KEY.run(id), 'ended_at')) + run.ttl <= now then return { 'missing', '' } end

redis.call('ZADD', KEY.due, int(now + GRACE), id)
for _, key in ipairs(own_keys(id)) do redis.call('PERSIST', key) end
for _, row in ipairs(steps) do
  local outcome = redis.call('HGET', KEY.journal(id), row[1])
  if outcome then
    redis.call('HSET', KEY.archive(id), int(retries + 1) .. '/' .. row[1], outcome)
    redis.call('HDEL', KEY.journal(id), row[1])
  end
end
emit(run, event[1], event[2], event[3], event[4])
local before = run.status
redis.call('ZADD', KEY.index(tenant, 'pending'), 0, id)
redis.call('HSET', KEY.run(id), 'status', 'pending', 'seq', int(run.seq), 'retries', int(retries + 1), 'output', '',
  'error', '', 'ended_at', '', 'wait_reason', '', 'crashes', '0', 'looks', '0', 'down_since', '', 'deadline', '0', 'not_before', '0',
  'ended_as', 'retried', 'updated_at', int(now))
run.status = 'pending'
enqueue(run, run.band > 0 and run.band or 5, 'retry')
redis.call('ZREM', KEY.index(tenant, before), id)
redis.call('ZREM', KEY.index(tenant, 'dead'), id)
publish(run)
return { 'retried', 'pending' }
