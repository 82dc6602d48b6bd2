-- ARGV run, fence, told seq, step key, outcome (JSON text without its opening brace), blob digest, blob,
--      usage (field amount ...), events (type agent step data ...), steps that begin (key ...)
-- -> committed, seq | what ended the ownership
local id, fence, told, step, outcome, digest, blob = take(), take(), take_number(), take(), take(), take(), take()
local usage, events, opens = take_rows(2), take_rows(4), take_rows(1)
local run, answer = owned(id, fence, told)
if not run then return { answer, '0' } end
if redis.call('HEXISTS', KEY.journal(id), step) == 1 then return { 'committed', int(run.seq) } end

if digest ~= '' then
  redis.call('SADD', KEY.blobs(id), digest)
  redis.call('SET', KEY.blob(id, digest), blob)
end
redis.call('HSET', KEY.journal(id), step, '{"seq":' .. int(run.seq) .. ',"epoch":' .. int(run.epoch) ..
  ',"time":' .. int(now) .. ',"ordinal":' .. int(redis.call('HLEN', KEY.journal(id))) .. ',' .. outcome)
emit_rows(run, events)
redis.call('HSET', KEY.run(id), 'seq', int(run.seq), 'crashes', '0', 'looks', '0',
  'down_since', '', 'updated_at', int(now))
for _, row in ipairs(usage) do redis.call('HINCRBY', KEY.run(id), row[1], row[2]) end
for _, row in ipairs(opens) do redis.call('HSET', KEY.starts(id), row[1], int(run.epoch)) end
redis.call('HDEL', KEY.starts(id), step, 'intent:' .. step)
publish(run)
return { 'committed', int(run.seq) }
