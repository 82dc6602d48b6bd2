-- ARGV run, tenant, event (type agent step data)  ->  cancelled | missing | newer | ended, status before
local id, tenant = take(), take()
local event = { take(), take(), take(), take() }
local run = load_run(id)
if not run or run.tenant ~= tenant then return { 'missing', '' } end
if run.v > SCHEMA then return { 'newer', run.status } end
if run.status == 'cancelled' then return { 'cancelled', run.status } end
if TERMINAL[run.status] then return { 'ended', run.status } end

local before, owner, claim_fence = run.status, run.owner, int(run.epoch) .. ':' .. run.claim
local events = in_doubt(run)
events[#events + 1] = event
conclude(run, 'fenced', 'cancelled', events, '', '')
dismiss(owner, id, claim_fence)
return { 'cancelled', before }
