-- ARGV run, fence, told seq, reason  ->  released | what ended the ownership
local id, fence, told, reason = take(), take(), take_number(), take()
local run, answer = owned(id, fence, told)
if not run then return { answer } end
redis.call('ZADD', KEY.due, int(now), id)
end_ownership(run, 'released', run.status)
enqueue(run, 0, reason)
return { 'released' }
