-- ARGV mend (1 | 0), highest readable v, things (what, key, member ...)
-- -> rows: number of the thing, kind of finding, key, member, what was done ('' when nothing was)
-- Looks and mends in one: what is mended has been looked at in the same moment.
local mend, highest = take() == '1', take_number()
local things = take_rows(3)
local KEPT = 300000
local found, current = {}, 0

local function find(kind, key, member, deed, act)
  local done = ''
  if mend and act then
    act()
    done = deed
  end
  found[#found + 1] = { int(current), kind, key, member, done }
end

-- The record and 'known'; or nil and 'gone', 'unreadable', or 'newer': written by a newer posthouse.
local function look_up(id)
  local run = load_run(id)
  if run and run.v <= highest then return run, 'known' end
  if redis.call('EXISTS', KEY.run(id)) == 0 then return nil, 'gone' end
  return nil, run and 'newer' or 'unreadable'
end

-- Whether this is the job that its run waits to be taken by; claim would take no other.
local function is_stale(job)
  local id = string.match(job, '^(%w+):%d+$')
  if not id then return true end
  local run, state = look_up(id)
  if not run then return state == 'gone' end
  return TERMINAL[run.status] or run.claim ~= '' or job ~= id .. ':' .. int(run.dispatch) or is_parked(run)
end

-- Somebody else's keys may be in the same database: what is not named by a run of ours is left alone.
local function ours(id) return #id == 26 and string.match(id, '^[0-7][0-9A-HJKMNP-TV-Z]+$') ~= nil end

local examine = {}

function examine.entry(key, job)
  if ours(string.match(job, '^[^:]*')) and redis.call('ZSCORE', key, job) and is_stale(job) then
    find('stale_job', key, job, 'removed', function()
      redis.call('ZREM', key, job)
      drop_job(job)
    end)
  end
end

function examine.job(key)
  local job = string.match(key, '^arq:[%a-]+:(.*)$')
  if ours(string.match(job, '^[^:]*')) and redis.call('EXISTS', key) == 1 and is_stale(job) then
    find('stale_job', key, '', 'deleted', function() redis.call('DEL', key) end)
  end
end

function examine.due(key, id)
  if not ours(id) then return end
  local _, state = look_up(id)
  if state == 'gone' and redis.call('ZSCORE', key, id) then
    find('stale_due', key, id, 'removed', function() redis.call('ZREM', key, id) end)
  end
end

function examine.index(key, id)
  if not ours(id) then return end
  local run, state = look_up(id)
  if not redis.call('ZSCORE', key, id) or (not run and state ~= 'gone') then return end
  if run and (key == KEY.index(run.tenant) or key == KEY.index(run.tenant, run.status)) then return end
  if run and run.status == 'failed' and key == KEY.index(run.tenant, 'dead') then return end
  find('stale_index', key, id, 'removed', function() redis.call('ZREM', key, id) end)
end

function examine.part(key)
  local _, state = look_up(string.match(key, '^run:(%w+):'))
  if state == 'gone' and redis.call('EXISTS', key) == 1 then
    find('orphan', key, '', 'deleted', function() redis.call('DEL', key) end)
  end
end

function examine.passing(key)
  if string.sub(key, 1, 7) == 'worker:' and redis.pcall('HEXISTS', key, 'seen_at') ~= 1 then return end
  if redis.call('PTTL', key) == -1 then
    find('lasting', key, '', 'kept for 5 more minutes', function() redis.call('PEXPIRE', key, KEPT) end)
  end
end

-- Whether somebody has to look at the run again, whatever else happens.
local function needs_due(run)
  if TERMINAL[run.status] then return run.root == run.id end
  if not is_parked(run) or run.deadline > 0 then return true end
  for _, wait in ipairs(redis.call('HVALS', KEY.waits(run.id))) do
    if number(string.match(wait, '^%d+')) > 0 then return true end
  end
  return false
end

local function examine_keys(run)
  if TERMINAL[run.status] then
    local waits, starts = KEY.waits(run.id), KEY.starts(run.id)
    if redis.call('EXISTS', waits) == 1 then
      find('leftover', waits, '', 'deleted', function() redis.call('DEL', waits) end)
    end
    -- Effects in doubt stay for a retry.
    for _, field in ipairs(redis.call('HKEYS', starts)) do
      if string.sub(field, 1, 7) ~= 'intent:' then
        find('leftover', starts, field, 'deleted', function() redis.call('HDEL', starts, field) end)
      end
    end
    return
  end
  for _, key in ipairs(own_keys(run.id)) do
    if redis.call('PTTL', key) >= 0 then
      find('expiring', key, '', 'kept', function() redis.call('PERSIST', key) end)
    end
  end
end

function examine.record(key, id)
  local run, state = look_up(id)
  if state == 'unreadable' then find('unreadable', key, '', '', nil) end
  if not run then return end
  if needs_due(run) and not redis.call('ZSCORE', KEY.due, id) then
    find('missing_due', KEY.due, id, 'due now', function() redis.call('ZADD', KEY.due, int(now), id) end)
  end
  for _, index in ipairs({ KEY.index(run.tenant), KEY.index(run.tenant, run.status) }) do
    if not redis.call('ZSCORE', index, id) then
      find('missing_index', index, id, 'added', function() redis.call('ZADD', index, 0, id) end)
    end
  end
  examine_keys(run)
end

for i, row in ipairs(things) do
  current = i
  if not pcall(examine[row[1]], row[2], row[3]) then find('unreadable', row[2], row[3], '', nil) end
end
return found
