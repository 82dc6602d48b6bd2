-- ARGV run, tenant  ->  deleted | missing | newer | live | child
local id, tenant = take(), take()
local run = load_run(id)
if not run or run.tenant ~= tenant then return { 'missing' } end
if run.v > SCHEMA then return { 'newer' } end
if run.root ~= id then return { 'child' } end
if not TERMINAL[run.status] then return { 'live' } end
purge(run)
return { 'deleted' }
