-- ARGV run, fence, told seq, pins (name, version and text ...), events (type agent step data ...), steps (key ...),
--      intents (step key, agent, data of the event that says that its effect is in doubt ...)
-- -> started, seq, copied, pinned texts ... | what ended the ownership
local id, fence, told = take(), take(), take_number()
local pins, events, steps, intents = take_rows(2), take_rows(4), take_rows(1), take_rows(3)
local run, answer = owned(id, fence, told)
if not run then return { answer, 0, 0 } end

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
  redis.call('HSET', KEY.run(id), 'seq', int(run.seq), 'updated_at', int(now))
  for _, row in ipairs(steps) do redis.call('HSET', KEY.starts(id), row[1], int(run.epoch)) end
  publish(run)
end
for _, row in ipairs(intents) do
  redis.call('HSET', KEY.starts(id), 'intent:' .. row[1], int(run.epoch) .. '|' .. row[2] .. '|' .. row[3])
end
return { 'started', int(run.seq), int(number(redis.call('HGET', KEY.run(id), 'copied'))), unpack(pinned) }
