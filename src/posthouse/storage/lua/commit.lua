-- ARGV run, fence, told seq, step key, outcome (JSON text without its opening brace), blob digest, blob,
--      usage (field amount ...), events (type agent step data ...), steps that begin (key ...),
--      seq of the outcome that this one takes the place of ('' = none)
-- -> committed, seq, copied | what ended the ownership
local id, fence, told, step, outcome, digest, blob = take(), take(), take_number(), take(), take(), take(), take()
local usage, events, opens, former = take_rows(2), take_rows(4), take_rows(1), take()
local run, answer = owned(id, fence, told)
if not run then return { answer, '0', '0' } end
local function committed()
  return { 'committed', int(run.seq), int(number(redis.call('HGET', KEY.run(id), 'copied'))) }
end
if recorded(run, step, former) then return committed() end

if digest ~= '' then
  redis.call('SADD', KEY.blobs(id), digest)
  redis.call('SET', KEY.blob(id, digest), blob)
end
journal(run, step, outcome)
settle_reservation(run, step, usage)
emit_rows(run, events)
redis.call('HSET', KEY.run(id), 'seq', int(run.seq), 'crashes', '0', 'looks', '0',
  'down_since', '', 'updated_at', int(now))
for _, row in ipairs(usage) do
  redis.call('HINCRBY', KEY.run(id), row[1], row[2])
  -- A root shows what its whole tree took.
  if run.root ~= id then redis.call('HINCRBY', KEY.run(run.root), row[1], row[2]) end
end
for _, row in ipairs(opens) do redis.call('HSET', KEY.starts(id), row[1], int(run.epoch)) end
redis.call('HDEL', KEY.starts(id), step, 'intent:' .. step)
publish(run)
return committed()
