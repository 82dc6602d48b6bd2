-- ARGV run, fence, told seq, step key, expires after ms ('' = never), outcome when it expires (JSON text without its
--      opening brace), request (JSON), event (type agent step data),
--      seq of the outcome that this one takes the place of ('' = none)
-- -> asked, seq, copied | what ended the ownership
local id, fence, told, step = take(), take(), take_number(), take()
local after, outcome, request = take(), take(), take()
local event = { take(), take(), take(), take() }
local former = take()
local run, answer = owned(id, fence, told)
if not run then return { answer, '0', '0' } end

if not recorded(run, step, former) and redis.call('HEXISTS', KEY.waits(id), step) == 0 then
  local till = after ~= '' and now + tonumber(after) or 0
  open_input(run, step, till, request)
  emit(run, event[1], event[2], event[3], event[4])
  redis.call('HSET', KEY.run(id), 'seq', int(run.seq), 'updated_at', int(now))
  -- Last: a call that broke before is made again as a whole.
  redis.call('HSET', KEY.waits(id), step, int(till) .. '|input|' .. outcome)
  publish(run)
end
return { 'asked', int(run.seq), int(number(redis.call('HGET', KEY.run(id), 'copied'))) }
