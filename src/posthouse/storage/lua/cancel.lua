-- ARGV run, tenant, event (type agent step data)  ->  cancelled | missing | newer | ended, status
local id, tenant = take(), take()
local event = { take(), take(), take(), take() }
local run = load_run(id)
if not run or run.tenant ~= tenant then return { 'missing', '' } end
if run.v > SCHEMA then return { 'newer', run.status } end
if run.status == 'cancelled' then return { 'cancelled', run.status } end
if TERMINAL[run.status] then return { 'ended', run.status } end

local owner, claim_fence = run.owner, int(run.epoch) .. ':' .. run.claim
local events = {}
-- An effect that was begun and not committed may or may not have happened: nobody will find out by doing it again.
local starts = redis.call('HGETALL', KEY.starts(id))
for i = 1, #starts, 2 do
  local step = string.match(starts[i], '^intent:(.*)$')
  local agent, data = string.match(starts[i + 1], '^%d+|([^|]*)|(.*)$')
  if step and data then events[#events + 1] = { 'tool.in_doubt', agent, step, data } end
end
events[#events + 1] = event
conclude(run, 'fenced', 'cancelled', events, '', '')
dismiss(owner, id, claim_fence)
return { 'cancelled', 'cancelled' }
