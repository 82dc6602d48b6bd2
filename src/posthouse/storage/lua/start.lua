-- ARGV run, fence, told seq, pins (name, version and text ...), events (type agent step data ...), steps (key ...)
-- -> started, seq, pinned texts ... | what ended the ownership
local id, fence, told = take(), take(), take_number()
local pins, events, steps = take_rows(2), take_rows(4), take_rows(1)
local run, answer = owned(id, fence, told)
if not run then return { answer, 0 } end

local pinned = {}
for i, pin in ipairs(pins) do
  redis.call('HSETNX', KEY.prompts(run.root), pin[1], pin[2])
  pinned[i] = redis.call('HGET', KEY.prompts(run.root), pin[1])
end
local known = #steps > 0
for _, row in ipairs(steps) do
  if redis.call('HGET', KEY.starts(id), row[1]) ~= int(run.epoch) then known = false end
end
if not known then
  emit_rows(run, events)
  redis.call('HSET', KEY.run(id), 'seq', int(run.seq), 'begun', '1', 'updated_at', int(now))
  for _, row in ipairs(steps) do redis.call('HSET', KEY.starts(id), row[1], int(run.epoch)) end
  publish(run)
end
return { 'started', int(run.seq), unpack(pinned) }
