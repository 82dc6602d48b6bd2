-- ARGV schedule, its next slot as the caller saw it, the slot to fire (0: only go on), the slot after that (0: none),
--      run, v, workflow version, metadata, event (type agent step data), most that may wait, longest wait (ms),
--      memory mark (percent), budget (name amount ...)
-- -> fired | skipped | passed, run ('' for none); live, run; full, reason, seconds; moved | early | gone, ''
local id, given, slot, following = take(), take_number(), take_number(), take_number()
local asked = take()
local new = { id = asked, v = take(), version = take(), metadata = take(), not_before = 0 }
new.created = { take(), take(), take(), take() }
local most, longest, mark = take_number(), take_number(), take_number()
new.budget = take_rows(2)

local key, stored = KEY.schedule(id), {}
local names = { 'tenant', 'workflow', 'input', 'band', 'timeout', 'ttl', 'overlap', 'next', 'last_run', 'fired',
  'skipped', 'pinned', 'asked', 'answer', 'answered_run', 'models' }
local values = redis.call('HMGET', key, unpack(names))
for i, name in ipairs(names) do stored[name] = values[i] or '' end

local function set_timer(at)
  if at > 0 then redis.call('ZADD', KEY.schedules, int(at), id) else redis.call('ZREM', KEY.schedules, id) end
end

-- The slot is done with. The record first: a timer that was not set is set by whoever looks next.
local function go_on(answer, run, ...)
  redis.call('HSET', key, 'next', int(following), 'pinned', '', 'asked', asked, 'answer', answer, 'answered_run', run, ...)
  set_timer(following)
  return { answer, run }
end

if stored.tenant == '' then
  redis.call('ZREM', KEY.schedules, id)
  return { 'gone', '' }
end
if stored.asked == asked or number(stored.next) ~= given then
  set_timer(number(stored.next))
  if stored.asked == asked then return { stored.answer, stored.answered_run } end
  return { 'moved', '' }
end
-- A slot that was begun keeps its run, whoever ends it.
local pinned_slot, pinned_run = string.match(stored.pinned, '^(%d+)|(%w+)$')
if pinned_slot and number(pinned_slot) ~= slot then return { 'moved', '' } end
if slot > now then return { 'early', '' } end
if slot == 0 then return go_on('passed', '') end
new.id = pinned_run or asked

local run = { id = new.id, out = {} }
if redis.call('EXISTS', KEY.run(new.id)) == 0 then
  local status = stored.overlap ~= 'allow' and stored.last_run ~= '' and
    redis.call('HGET', KEY.run(stored.last_run), 'status')
  local live = status and not TERMINAL[status]
  if live and stored.overlap == 'skip' then
    return go_on('skipped', stored.last_run, 'skipped', int(number(stored.skipped) + 1))
  end
  if not pinned_slot then redis.call('HSET', key, 'pinned', int(slot) .. '|' .. new.id) end
  local full = no_room(most, longest, mark)
  if full then return full end
  if live then return { 'live', stored.last_run } end
  new.tenant, new.workflow, new.input, new.ttl = stored.tenant, stored.workflow, stored.input, stored.ttl
  new.band, new.timeout, new.models = number(stored.band), number(stored.timeout), stored.models
  run = accept_run(new)
end
local answer = go_on('fired', new.id, 'last', int(slot), 'last_run', new.id, 'fired', int(number(stored.fired) + 1))
publish(run)
return answer
