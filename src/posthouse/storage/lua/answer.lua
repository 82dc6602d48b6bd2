-- ARGV run, tenant, the input's part of its id, SHA-1 of the request as it was seen, fingerprint of the answer,
--      outcome (JSON text without its opening brace), answer (JSON), event (type agent step data)
-- -> answered | repeated | differs | changed | expired | closed | missing | newer
local id, tenant, input, seen, fingerprint, outcome, given = take(), take(), take(), take(), take(), take(), take()
local event = { take(), take(), take(), take() }
local run = load_run(id)
if not run or run.tenant ~= tenant then return { 'missing' } end
if run.v > SCHEMA then return { 'newer' } end
local request = redis.call('HGET', KEY.inputs(id), input)
if not request then return { 'missing' } end
local state, step, asked = string.match(request, '^(%a+)|%d+|%d+|([^|]*)|(.*)$')
if state == 'answered' then
  local first = string.match(redis.call('HGET', KEY.inputs(id), input .. ':answer') or '', '^([^|]*)|')
  return { first == fingerprint and 'repeated' or 'differs' }
end
if state == 'expired' then return { 'expired' } end
if state ~= 'open' or TERMINAL[run.status] then return { 'closed' } end
-- Asked anew since, after a retry: nobody has answered that.
if redis.sha1hex(asked) ~= seen then return { 'changed' } end
if redis.call('HEXISTS', KEY.waits(id), step) == 0 then
  -- This very answer, in a call that broke after it had woken the run.
  local first = string.match(redis.call('HGET', KEY.inputs(id), input .. ':answer') or '', '^([^|]*)|')
  if first ~= fingerprint then return { 'closed' } end
  close_input(run, step, 'answered')
  return { 'answered' }
end

redis.call('ZADD', KEY.due, 'LT', int(now + GRACE), id)
journal(run, step, outcome)
redis.call('HSET', KEY.inputs(id), input .. ':answer', fingerprint .. '|' .. int(now) .. '|' .. given)
emit(run, event[1], event[2], event[3], event[4])
redis.call('HSET', KEY.run(id), 'seq', int(run.seq))
publish(run)
resolve(run, { step }, 'input')
close_input(run, step, 'answered')
return { 'answered' }
