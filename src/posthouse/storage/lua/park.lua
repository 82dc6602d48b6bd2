-- ARGV run, fence, told seq, signals as told at the claim, status, wait reason, event (type agent step data),
--      waits (step key, kind, after ms or '', outcome ...)  ->  parked | moved, signals | what ended the ownership
local id, fence, told, signals, status, reason = take(), take(), take_number(), take_number(), take(), take()
local event = { take(), take(), take(), take() }
local waits = take_rows(4)
local run, answer = owned(id, fence, told)
if not run then return { answer, '0' } end
if run.signals ~= signals then return { 'moved', int(run.signals) } end

for _, row in ipairs(waits) do
  if row[2] == 'child' and redis.call('EXISTS', KEY.run(row[4])) == 0 and
    redis.call('HEXISTS', KEY.journal(id), (string.gsub(row[1], '/end$', ''))) == 0 then
    -- The child went with a lost tail of the append-only file, which no event of this run tells of.
    dispossess(run, 'lost')
    return { 'fenced', '0' }
  end
  -- The signals say that the journal was read: what it holds of a timer is from before a retry, and of another one.
  if row[2] == 'timer' then set_aside(id, row[1], redis.call('HGET', KEY.run(id), 'retries')) end
end

-- What stands there and is not waited for now: an endpoint or a version that was waited for is void, a timer runs on.
local stored, void, earliest = {}, {}, nil
local all = redis.call('HGETALL', KEY.waits(id))
for i = 1, #all, 2 do stored[all[i]] = all[i + 1] end
for _, row in ipairs(waits) do
  -- A timer keeps the moment that was first set; the model's endpoint says anew how long it is not asked.
  row.anew = row[2] == 'model' or row[2] == 'rate_limit'
  local before = not row.anew and stored[row[1]]
  local till = before and number(string.match(before, '^%d+')) or (row[3] ~= '' and now + tonumber(row[3]) or 0)
  row.till = till
  stored[row[1]] = nil
  if till > 0 and (not earliest or till < earliest) then earliest = till end
end
for step, wait in pairs(stored) do
  local till, kind = string.match(wait, '^(%d+)|([%a_]+)|')
  till = number(till)
  if kind == 'model' or kind == 'rate_limit' or kind == 'version' then
    void[#void + 1] = step
  elseif till > 0 and (not earliest or till < earliest) then
    earliest = till
  end
end
if not earliest and run.deadline > 0 and run.asking == 0 then earliest = run.deadline end
if earliest then look_again(run, earliest) end
for _, row in ipairs(waits) do
  redis.call(row.anew and 'HSET' or 'HSETNX', KEY.waits(id), row[1], int(row.till) .. '|' .. row[2] .. '|' .. row[4])
end
-- A child may have ended while nobody waited for it.
for _, row in ipairs(waits) do
  local child = row[2] == 'child' and load_run(row[4])
  if child and TERMINAL[child.status] then settle(child) end
end
local moved = redis.call('HGET', KEY.run(id), 'signals')
if number(moved) ~= signals then return { 'moved', moved } end
emit(run, event[1], event[2], event[3], event[4])
local former = redis.call('HMGET', KEY.run(id), 'looks', 'down_since')
local looks = number(former[1]) + (reason == 'version' and 1 or 0)
local down_since = (reason == 'model' or reason == 'rate_limit') and (number(former[2]) > 0 and former[2] or int(now)) or ''
end_ownership(run, 'parked', status, 'wait_reason', reason, 'parked_at', int(run.dispatch), 'looks', int(looks),
  'down_since', down_since)
if not earliest then redis.call('ZREM', KEY.due, id) end
for _, step in ipairs(void) do redis.call('HDEL', KEY.waits(id), step) end
-- No crash cut these: what had come of their text is void already.
for _, row in ipairs(waits) do
  if row.anew then redis.call('HDEL', KEY.starts(id), row[1]) end
end
publish(run)
return { 'parked', int(run.signals) }
