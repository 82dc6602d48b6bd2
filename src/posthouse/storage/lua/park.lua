-- ARGV run, fence, told seq, signals as told at the claim, status, wait reason, event (type agent step data),
--      waits (step key, kind, after ms or '', outcome ...)  ->  parked | moved, signals | what ended the ownership
local id, fence, told, signals, status, reason = take(), take(), take_number(), take_number(), take(), take()
local event = { take(), take(), take(), take() }
local waits = take_rows(4)
local run, answer = owned(id, fence, told)
if not run then return { answer, '0' } end
if run.signals ~= signals then return { 'moved', int(run.signals) } end

local earliest
for _, row in ipairs(waits) do
  -- A timer keeps the moment that was first set; the model's endpoint says anew how long it is not asked.
  local stored = row[2] ~= 'model' and redis.call('HGET', KEY.waits(id), row[1])
  local till = stored and number(string.match(stored, '^%d+')) or (row[3] ~= '' and now + tonumber(row[3]) or 0)
  row.till = till
  if till > 0 and (not earliest or till < earliest) then earliest = till end
end
if not earliest and run.deadline > 0 then earliest = run.deadline end
if earliest then look_again(run, earliest) end
for _, row in ipairs(waits) do
  redis.call(row[2] == 'model' and 'HSET' or 'HSETNX', KEY.waits(id), row[1], int(row.till) .. '|' .. row[2] .. '|' .. row[4])
end
emit(run, event[1], event[2], event[3], event[4])
local former = redis.call('HMGET', KEY.run(id), 'looks', 'down_since')
local looks = number(former[1]) + (reason == 'version' and 1 or 0)
local down_since = reason == 'model' and (number(former[2]) > 0 and former[2] or int(now)) or ''
end_ownership(run, 'parked', status, 'wait_reason', reason, 'parked_at', int(run.dispatch), 'looks', int(looks),
  'down_since', down_since)
if not earliest then redis.call('ZREM', KEY.due, id) end
-- No crash cut these: what had come of their text is void already.
for _, row in ipairs(waits) do
  if row[2] == 'model' then redis.call('HDEL', KEY.starts(id), row[1]) end
end
publish(run)
return { 'parked', int(run.signals) }
